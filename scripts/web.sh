#!/usr/bin/env bash
# Builds the page that trains in a browser, in web/dist: static files for any host. Needs Rust with the target wasm32-unknown-unknown, and
# Node for the chart library. Without the target, on Debian and Ubuntu, the standard library is compiled with Debian's rustc-web, which
# is installed here. VAE_WGPU_WEB_PROFILE=quick compiles faster, to a slower program.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TRIPLE=wasm32-unknown-unknown
profile=${VAE_WGPU_WEB_PROFILE:-release}
target=${CARGO_TARGET_DIR:-$PWD/target}/web

die() {
    printf 'web: %s\n' "$*" >&2
    exit 1
}

# install PACKAGE...
install() {
    command -v apt-get >/dev/null || die "the Rust target $TRIPLE is missing: rustup target add $TRIPLE"
    echo "web: installing $*"
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    "${root[@]}" apt-get update -q
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}

# Debian's compiler is in /usr/bin, behind that of rustup in PATH. Its standard library has the version that the package has.
debian() {
    dpkg -s rustc-web rust-web-src >/dev/null 2>&1 || install rustc-web rust-web-src
    local host linker
    host=$(rustc -vV | sed -n 's/^host: //p')
    linker=$(rustc --print sysroot)/lib/rustlib/$host/bin/rust-lld
    [ -x "$linker" ] || die "rust-lld is missing: expected $linker, as rustup's toolchains have it"
    RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$linker \
        cargo build "$@" -Zbuild-std=std,panic_abort
}

build() {
    local arguments=(--manifest-path web/Cargo.toml --locked --target "$TRIPLE" --profile "$profile" --target-dir "$target")
    if [ -d "$(rustc --print sysroot)/lib/rustlib/$TRIPLE" ]; then
        cargo build "${arguments[@]}"
    else
        debian "${arguments[@]}"
    fi
}

# The JavaScript between page and program, in web/dist/engine.js.
bindings() {
    local wasm=$target/$TRIPLE/$profile/vae_wgpu_web.wasm version
    version=$(sed -n 's/^wasm-bindgen = "=\(.*\)"$/\1/p' web/Cargo.toml)
    if [ "$(wasm-bindgen --version 2>/dev/null)" = "wasm-bindgen $version" ]; then
        wasm-bindgen --target web --no-typescript --remove-name-section --out-dir web/dist --out-name engine "$wasm"
    else
        cargo run --quiet --locked --release --manifest-path tools/wasm-bindgen/Cargo.toml --target-dir "$target" -- "$wasm" web/dist engine
    fi
}

command -v cargo >/dev/null || die "no Rust toolchain; see https://rustup.rs"
command -v npm >/dev/null || die "Node is missing: install it from https://nodejs.org, or Debian's packages nodejs and npm"

build
npm ci --ignore-scripts --no-audit --no-fund --silent --prefix web
rm -rf web/dist
mkdir -p web/dist/vendor web/dist/pretrained
bindings
cp -R web/page/. web/dist/
cp web/node_modules/uplot/dist/uPlot.esm.js web/node_modules/uplot/dist/uPlot.min.css web/dist/vendor/
# Its prior stays here: the page draws from N(0, I).
cp assets/pretrained/model.safetensors web/dist/pretrained/
cp web/node_modules/uplot/LICENSE web/dist/vendor/uPlot-LICENSE

size=$(gzip -9c web/dist/engine_bg.wasm | wc -c)
echo "web: web/dist is ready; the program has $(wc -c <web/dist/engine_bg.wasm) bytes, $size packed"
[ "$size" -le 3000000 ] || die "the program has $size bytes packed; at most 3000000 are allowed"
