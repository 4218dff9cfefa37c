#!/usr/bin/env bash
# archive.sh BINARY TARGET FOLDER: packs a release into FOLDER/vae-wgpu-VERSION-TARGET.tar.gz (.zip for Windows), writes its SHA-256
# beside it and prints the path. The binary is run for the shell completions and the manual pages. `[package.metadata.binstall]` in Cargo.toml names
# the same layout.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/scripts/release/lib.sh"
[ $# = 3 ] || die "usage: archive.sh BINARY TARGET FOLDER"
target=$2
binary=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
mkdir -p "$3"
folder=$(cd "$3" && pwd)
cd "$root"

version=$(manifest_field version)
found=$("$binary" --version)
# `vae-wgpu 0.1.0`; the program may have been renamed.
[ "${found##* }" = "$version" ] || die "$binary is \`$found\`, but the version in Cargo.toml is $version"

name=vae-wgpu-$version-$target
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
stage=$scratch/$name
mkdir -p "$stage/completions"
cp "$binary" "$stage/$(executable "$target")"
chmod 755 "$stage/$(executable "$target")"
cp README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$stage"
# The font is embedded in the program.
cp assets/DejaVuSans-LICENSE.txt "$stage/LICENSE-DejaVuSans.txt"
scripts/release/third_party.sh "$target" >"$stage/THIRD-PARTY.txt"
"$binary" completions bash >"$stage/completions/vae-wgpu.bash"
"$binary" completions elvish >"$stage/completions/vae-wgpu.elv"
"$binary" completions fish >"$stage/completions/vae-wgpu.fish"
"$binary" completions powershell >"$stage/completions/_vae-wgpu.ps1"
"$binary" completions zsh >"$stage/completions/_vae-wgpu"
"$binary" man "$stage/man"

cd "$scratch"
case $target in
*-windows-*)
    archive=$name.zip
    if command -v 7z >/dev/null; then
        7z a -bso0 -bsp0 "$archive" "$name"
    else
        zip -qr "$archive" "$name"
    fi
    ;;
*)
    archive=$name.tar.gz
    tar -czf "$archive" "$name"
    ;;
esac
sha256 "$archive" >"$archive.sha256"
mv "$archive" "$archive.sha256" "$folder"
echo "$folder/$archive"
