#!/usr/bin/env bash
# Runs the whole suite and prints the seconds of each part at the end. Arguments go to every test program, e.g. a filter.
set -euo pipefail
cd "$(dirname "$0")/.."

# One build: what the tests need includes the program. Examples are built by `make lint` and run by .ci/run.
scripts/setup.sh cargo test --release --no-run --lib --tests
built=$SECONDS

# Mesa's software driver spends nine tenths of the suite in LLVM: half of that without its optimisation passes. Other drivers ignore this.
export GALLIVM_PERF=${GALLIVM_PERF-nopt}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --release --no-fail-fast --lib --tests -- "$@" 2>&1 | tee "$log" || status=$?
if [ $# -eq 0 ]; then
    cargo test --release --doc 2>&1 | tee -a "$log" || status=$?
fi
echo
echo "seconds:"
printf '%8.1f  building\n' "$built"
awk -f scripts/seconds.awk "$log"
exit "$status"
