#!/usr/bin/env bash
# setup.sh [BUILD COMMAND...]: makes the machine ready for the tests: a C linker, which Rust itself needs, the program, and a GPU adapter,
# a software one where there is nothing better. On Debian and Ubuntu missing packages are installed; elsewhere this prints what to
# install. The build command (by default `cargo build --release`) must build the program.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- cargo build --release

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# install WHAT PACKAGE...
install() {
    local what=$1
    shift
    command -v apt-get >/dev/null || die "$what is missing; install the equivalent of the Debian packages: $*"
    echo "setup: $what is missing, installing $*"
    local root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "neither root nor sudo; install as root: apt-get install $*"
        root=(sudo)
    fi
    "${root[@]}" apt-get update -q
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}

adapter() {
    local found
    found=$(./target/release/vae-wgpu devices --json) && grep -q '"name"' <<<"$found"
}

command -v cargo >/dev/null || die "no Rust toolchain; see https://rustup.rs"
if [ "$(uname)" = Linux ] && ! command -v cc >/dev/null; then
    install "a C linker (cc)" gcc libc6-dev
fi

"$@"

if ! adapter; then
    [ "$(uname)" = Linux ] || die "no GPU adapter: Metal (macOS) or DirectX 12 (Windows) is needed"
    install "a Vulkan adapter" libvulkan1 mesa-vulkan-drivers
    adapter || die "still no GPU adapter; see \`vae-wgpu devices\` and \`vulkaninfo --summary\`"
fi
