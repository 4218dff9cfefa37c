#!/usr/bin/env bash
# Runs the whole suite and prints the seconds of each part at the end. Arguments go to every test program, e.g. a filter. FEATURES are
# features of the crate besides the default ones, such as mpi.
set -euo pipefail
cd "$(dirname "$0")/.."

# One build: what the tests need includes the program. Examples are built by `make lint` and run by .ci/run.
read -ra cargo <<<"cargo test --release --no-fail-fast ${FEATURES:+--features $FEATURES}"
scripts/setup.sh "${cargo[@]}" --no-run --lib --tests
built=$SECONDS

# Mesa's software driver spends nine tenths of the suite in LLVM: half of that without its optimisation passes. Other drivers ignore this.
export GALLIVM_PERF=${GALLIVM_PERF-nopt}
scratch=$(mktemp -d)
processes=() parts=()
# What runs beside ends with this script: each has a process group of its own.
end() {
    local process
    for process in "${processes[@]}"; do kill -- "-$process" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap end EXIT

# beside NAME COMMAND...: runs a command beside the others. Its output is printed at the end.
beside() {
    local part=$1
    shift
    set -m
    "$@" >"$scratch/$part" 2>&1 </dev/null &
    set +m
    processes+=($!) parts+=("$part")
}

# They leave the cores to the tests of the command line, some of which wait for a limited time.
gpu=(nice -n 5 "${cargo[@]}" --test gpu --)
if [ $# = 0 ]; then
    # Two processes compile kernels in less time than two threads of one, which wait for each other in the software driver.
    cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
    gpu+=(--test-threads $(((cores + 1) / 2)))
    # Each skips what the other runs.
    skip=() keep=()
    for part in kernels geometry parity; do skip+=(--skip "$part::"); done
    for part in training mutants subgroups faults soak finite device; do keep+=(--skip "$part::"); done
    beside kernels "${gpu[@]}" "${keep[@]}"
    gpu+=("${skip[@]}")
    beside doctests "${cargo[@]}" --doc
fi
beside others "${cargo[@]}" --lib --test library --test repo --test shaders -- "$@"
beside gpu "${gpu[@]}" "$@"

status=0
"${cargo[@]}" --test cli -- "$@" 2>&1 | tee "$scratch/cli" || status=$?
for process in "${processes[@]}"; do wait "$process" || status=$?; done
for part in "${parts[@]}"; do cat "$scratch/$part"; done

echo
echo "seconds:"
printf '%8.1f  building\n' "$built"
awk -f scripts/seconds.awk "${parts[@]/#/$scratch/}" "$scratch/cli"
printf '%8.1f  in all\n' "$SECONDS"
exit "$status"
