#!/usr/bin/env bash
# onnx.sh [BINARY]: exports models of every kind to ONNX and compares what onnxruntime computes with vae-wgpu; then runs the code in
# docs/onnx.md. Needs a Python with onnx, onnxruntime and safetensors (PYTHON, default python3) and does nothing where it has none. The
# code for browsers runs in Node.js if ONNXRUNTIME_WEB names a folder where `npm install onnxruntime-web` has been called.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/python_check.sh
python_check onnx "${1:-}" onnx onnxruntime safetensors

"$python" scripts/check_onnx.py "$binary" "$scratch"
code_in python docs/onnx.md >"$scratch/example.py"
grep -q InferenceSession "$scratch/example.py"
# Python changes the folder, because PYTHON may be a relative path.
"$python" -c 'import os, runpy, sys; os.chdir(sys.argv[1]); runpy.run_path("example.py")' "$scratch"

if [ -n "${ONNXRUNTIME_WEB:-}" ]; then
    code_in html docs/onnx.md >"$scratch/example.html"
    node scripts/check_onnx_browser.mjs "$ONNXRUNTIME_WEB" "$scratch" >"$scratch/drawn.json"
    "$python" scripts/check_onnx_browser.py "$scratch"
else
    echo "onnx: the code for browsers was skipped, ONNXRUNTIME_WEB is not set"
fi
echo "onnx: ok"
