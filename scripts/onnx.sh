#!/usr/bin/env bash
# onnx.sh [BINARY]: exports models of every kind to ONNX and compares what onnxruntime computes with vae-wgpu; then runs the code in docs/onnx.md.
# Needs a Python with onnx, onnxruntime and safetensors (PYTHON, default python3) and does nothing where it has none.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-target/release/vae-wgpu}")
python=${PYTHON:-python3}

if ! "$python" -c 'import onnx, onnxruntime, safetensors' 2>/dev/null; then
    echo "onnx: skipped, $python has no onnx, onnxruntime and safetensors"
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$python" scripts/check_onnx.py "$binary" "$scratch"
awk '/^```python$/ { code = 1; next } /^```$/ { code = 0 } code' docs/onnx.md >"$scratch/example.py"
grep -q InferenceSession "$scratch/example.py"
# Python changes the folder, because PYTHON may be a relative path.
"$python" -c 'import os, runpy, sys; os.chdir(sys.argv[1]); runpy.run_path("example.py")' "$scratch"
echo "onnx: ok"
