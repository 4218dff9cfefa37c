#!/usr/bin/env bash
# Checks that the crate compiles with the oldest toolchain that Cargo.toml promises (`rust-version`). Needs rustup.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
rustup toolchain install "$version" --profile minimal
cargo "+$version" check --locked --lib --bins --target-dir "target/msrv"
