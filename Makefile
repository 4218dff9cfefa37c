# `make test` is all that a new machine needs. The other targets are for daily work.

BENCH_ARGS ?= --batch 32

# Mesa's device-select layer complains on stderr where there is no desktop.
export NODEVICE_SELECT = 1

.PHONY: all setup demo test check lint bench web web-serve web-test

all: setup

# Builds the program. On Debian and Ubuntu also installs a C linker and a software Vulkan driver where there is none.
setup:
	@scripts/setup.sh

# A small model on built-in images, in a few minutes on two cores: losses, samples and reconstructions in runs/demo. Then samples from the
# pretrained model of CIFAR-10.
demo: setup
	./target/release/vae-wgpu train --config demo --out runs/demo --force
	./target/release/vae-wgpu sample runs/demo -n 49 --out runs/demo/samples.png
	./target/release/vae-wgpu sample pretrained -n 49 --out runs/demo/cifar10_samples.png
	@echo "images: runs/demo/samples.png, runs/demo/reconstruction_history.png, runs/demo/training_loss.png, runs/demo/cifar10_samples.png"

# The whole suite. Without a GPU adapter its GPU tests are ignored; with VAE_WGPU_REQUIRE_GPU=1 they fail.
test:
	@scripts/test.sh

# Compares every kernel with the CPU reference on this machine's adapter.
check: setup
	./target/release/vae-wgpu check

lint:
	@scripts/lint.sh

# The page that trains in a browser, in web/dist: docs/browser.md.
web:
	@scripts/web.sh

web-serve:
	@node web/serve.mjs

# In Chromium, on a software adapter. Needs `make web` and the native program.
web-test:
	@scripts/web-test.sh

# make bench BENCH_ARGS="--batch 32 --steps 4"
bench: setup
	./target/release/vae-wgpu bench step $(BENCH_ARGS)
