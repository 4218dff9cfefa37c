# make test is all that a new machine needs. The other targets are for daily work.

BENCH_ARGS ?= --batch 32

# Mesa's device-select layer complains on stderr where there is no desktop.
export NODEVICE_SELECT = 1

.PHONY: all setup test check lint bench

all: setup

# Builds, and installs a C linker and a (software) Vulkan driver on Debian and Ubuntu if there is none.
setup:
	@scripts/setup.sh

# The whole suite. Without a GPU adapter its GPU tests are ignored; with VAE_WGPU_REQUIRE_GPU=1 they fail.
test: setup
	cargo test --release --no-fail-fast

# Every operation on this machine's adapter, against the CPU reference.
check: setup
	./target/release/vae-wgpu check

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

# make bench BENCH_ARGS="--batch 32 --steps 4"
bench: setup
	./target/release/vae-wgpu bench step $(BENCH_ARGS)
