#!/usr/bin/env bash
# Runs the whole suite and prints the seconds of each part at the end. Arguments go to every test program, e.g. a filter.
set -euo pipefail
cd "$(dirname "$0")/.."

# One build: what the tests need includes the program. Examples are built by `make lint` and run by .ci/run.
scripts/setup.sh cargo test --release --no-run --lib --tests
built=$SECONDS

# Mesa's software driver spends nine tenths of the suite in LLVM: half of that without its optimisation passes. Other drivers ignore this.
export GALLIVM_PERF=${GALLIVM_PERF-nopt}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# suite PROGRAM...: runs some of the test programs.
suite() { cargo test --release --no-fail-fast "${programs[@]}" -- "$@"; }

# These wait for files and child processes more than they compute, so they run beside the others.
others() {
    local code=0
    programs=(--lib --test library --test repo --test shaders)
    suite "$@" || code=$?
    [ $# -gt 0 ] || cargo test --release --doc || code=$?
    return "$code"
}

status=0
others "$@" >"$scratch/others" 2>&1 &
programs=(--test cli --test gpu)
suite "$@" 2>&1 | tee "$scratch/main" || status=$?
wait $! || status=$?
cat "$scratch/others"

echo
echo "seconds:"
printf '%8.1f  building\n' "$built"
awk -f scripts/seconds.awk "$scratch/others" "$scratch/main"
printf '%8.1f  in all\n' "$SECONDS"
exit "$status"
