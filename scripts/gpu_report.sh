#!/usr/bin/env bash
# gpu_report.sh [BINARY] [FOLDER]: collects what an issue about a GPU needs, in FOLDER (default: target/gpu-report): adapters, the result
# of every kernel check, the time of a training step, and a short run. Takes a few minutes. The last line names the archive to attach.
# VAE_WGPU_REPORT_FILTER limits the checks to names that contain it.
set -euo pipefail
binary=${1:-target/release/vae-wgpu}
folder=${2:-target/gpu-report}
command -v "$binary" >/dev/null || {
    echo "gpu_report: $binary is missing; run \`cargo build --release\`, or pass the path of the program" >&2
    exit 1
}
mkdir -p "$folder"
status=0

# part NAME COMMAND...: output of a command into NAME.txt; a failure is reported and the other parts still run.
part() {
    local name=$1
    shift
    echo "$name: $*"
    "$@" >"$folder/$name.txt" 2>&1 || {
        echo "$name: exit code $?, see $folder/$name.txt"
        status=1
    }
    [ "$name" = devices_json ] || tail -n 1 "$folder/$name.txt"
}

part version "$binary" --version
part system uname -srm
part devices "$binary" devices
part devices_json "$binary" devices --json
part check "$binary" check ${VAE_WGPU_REPORT_FILTER:+"$VAE_WGPU_REPORT_FILTER"}
part step "$binary" bench step --batch 8 --warmup 1 --steps 3
part train "$binary" train --data shapes --train-limit 256 --val-limit 64 --channels 8 --blocks 1 --batch-size 32 --epochs 2 \
    --warmup 10 --out "$folder/run" --force
part sample "$binary" sample "$folder/run" -n 16 --out "$folder/samples.png"
# Weights and tables of the short run are of no use for a report.
rm -rf "$folder/run"

tar -czf "$folder.tar.gz" -C "$(dirname "$folder")" "$(basename "$folder")"
echo "attach this file: $folder.tar.gz"
exit "$status"
