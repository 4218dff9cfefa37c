#!/usr/bin/env bash
# pytorch.sh [BINARY]: trains a tiny model with each norm, likelihood and head, loads it into PyTorch and compares decoded images; then
# writes the weights back and samples from them. Needs a Python with torch and safetensors (PYTHON, default python3) and does nothing where
# it has none.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/python_check.sh
python_check pytorch "${1:-}" safetensors torch

load() { "$python" examples/load_in_pytorch.py "$@"; }

load --self-check
for model in "batch optimal" "batch unit" "position optimal --head flatten" "batch optimal --conditional"; do
    read -r norm likelihood more <<<"$model"
    run=$scratch/${model// /-}
    "$binary" train --quiet --data shapes --train-limit 128 --val-limit 32 --channels 8 --blocks 2 --batch-size 32 --epochs 1 \
        --norm "$norm" --likelihood "$likelihood" $more --out "$run"
    "$binary" encode "$run" --val-limit 32 --out "$run/latents.safetensors"
    "$binary" reconstruct "$run" --count 32 --raw --out "$run/images.safetensors"
    load "$run" --count 32 --latents "$run/latents.safetensors" --compare "$run/images.safetensors" --out "$run/decoded.png" \
        --save "$run/back.safetensors"
    "$binary" sample "$run/back.safetensors" --prior normal --raw --out "$run/back.npy"
    "$binary" sample "$run" --prior normal --raw --out "$run/samples.npy"
    cmp "$run/samples.npy" "$run/back.npy"
    load "$run" --prior mixture --out "$run/mixture.png"
done
echo "pytorch: ok"
