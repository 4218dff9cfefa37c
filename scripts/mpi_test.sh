#!/usr/bin/env bash
# mpi_test.sh [BINARY]: trains tiny models in several processes over MPI: results against those of one process, and failures. Without a
# binary it builds one with the feature `mpi` (CARGO_FLAGS, by default --release); on Debian and Ubuntu it installs OpenMPI and libclang.
# DEVICE is the device to train on, by default cpu.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cpu}

if ! command -v mpirun >/dev/null || ! command -v mpicc >/dev/null || ! compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null; then
    command -v apt-get >/dev/null || {
        echo "mpi_test: install OpenMPI with mpicc, and libclang" >&2
        exit 1
    }
    root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    "${root[@]}" apt-get update -q
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends openmpi-bin libopenmpi-dev libclang-dev
fi
binary=${1:-}
if [ -z "$binary" ]; then
    read -ra flags <<<"${CARGO_FLAGS---release}"
    cargo build "${flags[@]}" --features mpi
    binary=${CARGO_TARGET_DIR:-target}/$([[ " ${flags[*]} " == *" --release "* ]] && echo release || echo debug)/vae-wgpu
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Fewer cores than processes, perhaps as root, and no threads that wait for each other.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none
export LP_NUM_THREADS=1
# A step of eight images; the last one of an epoch has three.
train=("$binary" train --quiet --device "$device" --data shapes --train-limit 19 --val-limit 5 --val-split 0 --channels 2 --blocks 1
    --latent-dim 3 --batch-size 2)

# fails CODE TEXT COMMAND...: the command ends within 45 seconds with this code, and prints one error, with this text.
fails() {
    local code=$1 text=$2 begun=$SECONDS found=0
    shift 2
    "$@" >"$scratch/log" 2>&1 || found=$?
    if [ "$found" != "$code" ] || ! grep -q "^error: .*$text" "$scratch/log" || [ "$(grep -c '^error:' "$scratch/log")" != 1 ] || ((SECONDS - begun > 45)); then
        echo "mpi_test: exit code $found after $((SECONDS - begun)) s, expected $code and one error with '$text':" >&2
        cat "$scratch/log" >&2
        exit 1
    fi
}

same() {
    local file
    for file in model.safetensors last.safetensors checkpoint.safetensors; do
        cmp "$scratch/$1/$file" "$scratch/$2/$file"
    done
}

"${train[@]}" --epochs 2 --accumulate 4 --out "$scratch/one"
mpirun -n 2 "${train[@]}" --epochs 2 --accumulate 2 --out "$scratch/two"
mpirun -n 4 "${train[@]}" --epochs 2 --out "$scratch/four"
same one two
same one four
echo "mpi_test: 1 x 4, 2 x 2 and 4 x 1 are equal"

mpirun -n 2 "${train[@]}" --epochs 1 --schedule constant --accumulate 2 --out "$scratch/parts"
mpirun -n 4 "$binary" train --quiet --device "$device" --resume "$scratch/parts" --epochs 2
"${train[@]}" --epochs 2 --schedule constant --accumulate 4 --out "$scratch/constant"
for file in model.safetensors last.safetensors; do cmp "$scratch/constant/$file" "$scratch/parts/$file"; done
echo "mpi_test: a run resumes on another number of ranks"

# Repeated from its file on other numbers of processes, a run keeps its step.
mpirun -n 2 "$binary" train --quiet --device "$device" --config "$scratch/one/train.toml" --out "$scratch/again"
mpirun -n 4 "$binary" train --quiet --device "$device" --like "$scratch/two" --out "$scratch/like"
same one again
same one like
fails 1 "cannot share the micro-batches" mpirun -n 3 "$binary" train --device "$device" --like "$scratch/two" --out "$scratch/three"
echo "mpi_test: a run is repeated on another number of ranks"

mpirun -n 4 "${train[@]}" --epochs 2 --sync-batch-norm --out "$scratch/sync"
mpirun -n 4 "${train[@]}" --epochs 1 --schedule constant --sync-batch-norm --out "$scratch/sync_part"
mpirun -n 4 "$binary" train --quiet --device "$device" --resume "$scratch/sync_part" --epochs 2
mpirun -n 4 "${train[@]}" --epochs 2 --schedule constant --sync-batch-norm --out "$scratch/sync_whole"
for file in model.safetensors last.safetensors; do cmp "$scratch/sync_whole/$file" "$scratch/sync_part/$file"; done
if cmp -s "$scratch/sync/model.safetensors" "$scratch/four/model.safetensors"; then
    echo "mpi_test: --sync-batch-norm changes nothing" >&2
    exit 1
fi
fails 1 "in one process" "$binary" train --like "$scratch/sync" --device "$device" --out "$scratch/alone"
# The first step of four ranks with two images each is that of one batch of eight.
step=(--epochs 1 --likelihood unit --schedule constant)
mpirun -n 4 "${train[@]}" "${step[@]}" --sync-batch-norm --out "$scratch/sync_unit"
"${train[@]}" "${step[@]}" --batch-size 8 --out "$scratch/large"
for run in sync_unit large; do sed -n 2p "$scratch/$run/metrics.csv" | cut -d, -f3-6; done | awk -F, '
    NR == 1 { split($0, first, ",") }
    NR == 2 { for (i = 1; i <= NF; i++) { d = $i - first[i]; if (d * d > 1e-8 * $i * $i) { print "mpi_test: " first[i] " against " $i; exit 1 } } }'
echo "mpi_test: norms over all ranks are those of one batch"

events=$(mpirun -n 2 "${train[@]}" --epochs 1 --json --out "$scratch/json")
grep -q '"ranks":2' <<<"$events"
[ "$(grep -c '"event":"finished".*"communication_s":[0-9]' <<<"$events")" = 1 ]

fails 1 "rank 1: its setting .seed. differs" mpirun -n 1 "${train[@]}" --out "$scratch/differ" : -n 1 "${train[@]}" --seed 1
[ ! -e "$scratch/differ" ]
fails 1 "expected a power of two" mpirun -n 2 "${train[@]}" --accumulate 3 --out "$scratch/three"
fails 3 "non-finite value\|NaN or infinity" mpirun -n 2 "${train[@]}" --lr 1e30 --warmup 0 --clip-grad 0 --epochs 50 --out "$scratch/nan"
"$binary" train --quiet --device "$device" --resume "$scratch/nan" --epochs 50 >"$scratch/log" 2>&1 && exit 1
grep -q "^error: .*\(non-finite\|NaN\)" "$scratch/log"
fails 1 "rank 1: " mpirun -n 1 "${train[@]}" --out "$scratch/nodev" : -n 1 "${train[@]}" --device 99
echo "mpi_test: differences, divergence and failures end all ranks with one error"

# started FOLDER: waits until a run has made a step, at most a minute.
started() {
    local i
    for ((i = 0; i < 600; i++)); do
        [ -e "$1/metrics.csv" ] && [ "$(wc -l <"$1/metrics.csv")" -gt 2 ] && return
        sleep 0.1
    done
    echo "mpi_test: no step within a minute" >&2
    exit 1
}
# The process of rank N of the job that mpirun with this number leads.
rank_of() {
    local pid
    for pid in $(pgrep -P "$1"); do
        tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$2" && echo "$pid"
    done
}

# Long enough to be killed on the way.
many=(--epochs 10)
mpirun -n 2 "${train[@]}" "${many[@]}" --accumulate 2 --out "$scratch/killed" >"$scratch/killed.log" 2>&1 &
job=$!
started "$scratch/killed"
kill -KILL "$(rank_of "$job" 1)"
begun=$SECONDS
wait "$job" && exit 1
((SECONDS - begun <= 30))
grep -q "rank 1.*signal 9" "$scratch/killed.log"
mpirun -n 2 "$binary" train --quiet --device "$device" --resume "$scratch/killed"
"${train[@]}" "${many[@]}" --accumulate 4 --out "$scratch/whole"
same whole killed
echo "mpi_test: a killed rank ends the job, and the run resumes with the bits of one that was not killed"

long=(--epochs 5000 --accumulate 2)
mpirun --mca odls_base_sigkill_timeout 30 -n 2 "${train[@]}" "${long[@]}" --out "$scratch/stopped" >"$scratch/stopped.log" 2>&1 &
job=$!
started "$scratch/stopped"
kill -TERM "$(rank_of "$job" 1)"
code=0
wait "$job" || code=$?
[ "$code" = 0 ] || [ "$code" = 143 ] || { cat "$scratch/stopped.log" >&2; exit 1; }
step=$(tail -n 1 "$scratch/stopped/metrics.csv" | cut -d, -f1)
mpirun -n 2 "$binary" train --quiet --json --device "$device" --resume "$scratch/stopped" --epochs 5000 --max-time 1s >"$scratch/log"
grep -q "\"first_step\":$((step + 1))," "$scratch/log"
echo "mpi_test: a signal to one rank saves once, after the step"
echo "mpi_test: ok"
