#!/usr/bin/env bash
# build.sh TARGET: builds the program of a release for a target triple and prints its path. Linux binaries are built in a container with
# an old glibc (release.yml); VAE_WGPU_MAX_GLIBC sets another limit for a trial elsewhere.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/release/lib.sh
target=${1:?usage: build.sh TARGET}

case $target in
# A static musl binary cannot load the Vulkan driver of the system, which is linked against glibc. It would start, find no GPU and give
# no reason.
*-musl*) die "musl builds find no GPU on systems with glibc; use the -gnu target" ;;
# The C runtime becomes a part of the program, so no redistributable package has to be installed.
*-windows-msvc) export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" ;;
esac
if command -v rustup >/dev/null; then rustup target add "$target" >&2; fi
# `vae-wgpu check --report` names the commit.
VAE_WGPU_COMMIT=${GITHUB_SHA:-$(git rev-parse HEAD)}
export VAE_WGPU_COMMIT
cargo build --locked --profile dist --target "$target" --bin vae-wgpu >&2
binary=target/$target/dist/$(executable "$target")
case $target in
*-linux-gnu) scripts/release/check_glibc.sh "$binary" "${VAE_WGPU_MAX_GLIBC:-2.28}" >&2 ;;
esac
echo "$binary"
