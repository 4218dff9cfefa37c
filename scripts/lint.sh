#!/usr/bin/env bash
# Formatting, clippy, rustdoc, the layers of the crate, the word list. Runs all of them and fails if one does.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
# step NAME COMMAND...
step() {
    local name=$1
    shift
    "$@" || {
        echo "lint: $name fails" >&2
        status=1
    }
}
step format cargo fmt --all --check
step clippy cargo clippy --workspace --all-targets -- -D warnings
step rustdoc env RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps
# Without its upper layers the crate must still compile: the runtime alone, then runtime and VAE.
step "layer runtime" cargo rustc --lib --profile check --no-default-features -- --cfg runtime_only
step "layer vae" cargo check --no-default-features
# The kernel checks need no other part of the application.
step "without the command line" cargo check --lib --no-default-features --features check,archive
step words scripts/words.sh
exit "$status"
