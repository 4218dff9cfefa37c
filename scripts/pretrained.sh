#!/usr/bin/env bash
# pretrained.sh RUN [BINARY]: makes the files of the pretrained model (docs/pretrained.md) from a finished run on CIFAR-10: the weights as
# 16-bit floats and a prior fitted to them, in assets/pretrained, and docs/pretrained.png. Build the program again afterwards: the files are
# part of it. DATA names the data set (default: as `vae-wgpu fit-prior`). The picture needs ImageMagick.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly MOST=2000000

die() {
    printf 'pretrained: %s\n' "$*" >&2
    exit 1
}

[ $# -ge 1 ] || die "usage: scripts/pretrained.sh RUN [BINARY]"
run=$1 binary=$(realpath "${2:-target/release/vae-wgpu}")
data=()
[ -z "${DATA:-}" ] || data=(--data "$(realpath "$DATA")")
magick=$(command -v magick || command -v convert) || die "ImageMagick is missing; on Debian: apt-get install imagemagick"
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

# The prior names the weights that it was fitted to, so it is fitted to the rounded ones.
"$binary" export "$run" --half --out "$made/model.safetensors"
"$binary" fit-prior "$made/model.safetensors" "${data[@]}"
size=$(cat "$made/model.safetensors" "$made/prior.safetensors" | wc -c)
[ "$size" -le "$MOST" ] || die "the files have $size bytes; at most $MOST are allowed"

# Captions have the name of the file. These names give them that of the model.
cp "$made/model.safetensors" "$made/pretrained"
cp "$made/prior.safetensors" "$made/pretrained.prior.safetensors"
"$binary" sample "$made/pretrained" -n 49 --out "$made/samples.png"
"$binary" reconstruct "$made/pretrained" -n 25 "${data[@]}" --out "$made/reconstructions.png"
"$magick" "$made/samples.png" "$made/reconstructions.png" -background white -gravity north +append -strip "$made/both.png"

mkdir -p assets/pretrained
mv "$made/model.safetensors" "$made/prior.safetensors" assets/pretrained/
mv "$made/both.png" docs/pretrained.png
echo "pretrained: assets/pretrained has $size bytes; docs/pretrained.png shows samples and reconstructions"
