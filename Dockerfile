# The program with Mesa's Vulkan drivers. Not built in CI, whose machines run no containers; checked with hadolint.
#
#   docker build -t vae-wgpu .
#   docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" vae-wgpu train --data shapes --channels 8 --blocks 1 --epochs 5
#
# This uses the software driver. A GPU must be passed into the container:
#
#   AMD and Intel   docker run --device /dev/dri --group-add "$(stat -c %g /dev/dri/renderD128)" ...
#   NVIDIA          docker run --gpus all ...    (with the NVIDIA Container Toolkit on the host)
#
# `docker run --rm ... vae-wgpu devices` lists what the container sees. `-v vae-wgpu-cache:/cache` keeps downloads and compiled kernels.

FROM rust:1-bookworm AS build
# Named in reports: docker build --build-arg VAE_WGPU_COMMIT="$(git rev-parse HEAD)" ...
ARG VAE_WGPU_COMMIT
WORKDIR /source
COPY . .
RUN cargo install --locked --profile dist --path . --root /install

FROM debian:bookworm-slim
# NVIDIA's driver, which the toolkit mounts, is linked against libX11 and libXext.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libvulkan1 libx11-6 libxext6 mesa-vulkan-drivers \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /usr/sbin/nologin vae \
    && mkdir --mode=1777 /cache /work
COPY --from=build /install/bin/vae-wgpu /usr/local/bin/vae-wgpu
# The toolkit mounts the Vulkan driver only for `graphics`. The other variables keep Mesa quiet where there is no desktop.
ENV XDG_CACHE_HOME=/cache \
    NVIDIA_DRIVER_CAPABILITIES=graphics,utility \
    NODEVICE_SELECT=1 \
    XDG_RUNTIME_DIR=/tmp
USER 1000
WORKDIR /work
ENTRYPOINT ["vae-wgpu"]
CMD ["--help"]
