#!/usr/bin/env bash
# Puts SwiftShader, a second software Vulkan driver, into target/swiftshader and prints the path of its manifest, for VK_DRIVER_FILES.
# It comes from Debian's package chromium-common. It needs only libc, so it is extracted and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/target/swiftshader
manifest=vk_swiftshader_icd.json

if [ ! -f "$folder/$manifest" ]; then
    command -v apt-get >/dev/null || {
        echo "swiftshader: no apt-get; set VK_DRIVER_FILES to the manifest of a SwiftShader of your own" >&2
        exit 1
    }
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    download() { (cd "$temporary" && apt-get -q -o APT::Sandbox::User=root download chromium-common >&2); }
    if ! download; then
        root=()
        [ "$(id -u)" = 0 ] || root=(sudo)
        "${root[@]}" apt-get update -q >&2
        download
    fi
    dpkg-deb --fsys-tarfile "$temporary"/chromium-common_*.deb |
        tar -x -C "$temporary" --strip-components=4 "./usr/lib/chromium/$manifest" ./usr/lib/chromium/libvk_swiftshader.so
    mkdir -p "$folder"
    # The manifest comes last, because its presence means that the driver is complete.
    mv "$temporary/libvk_swiftshader.so" "$temporary/$manifest" "$folder"
fi
echo "$folder/$manifest"
