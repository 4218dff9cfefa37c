#!/usr/bin/env bash
# tensorboard.sh [BINARY]: trains a tiny model with --tensorboard, interrupts and resumes it, reads the event files with TensorBoard and compares
# what it shows with the files of the run; then runs the recipe for Weights & Biases in docs/run-folder.md. Needs a Python with tensorboard
# (PYTHON, default python3) and does nothing where it has none.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/python_check.sh
python_check tensorboard "${1:-}" tensorboard

run=$scratch/run
train() { "$binary" train --device cpu "$@"; }

train --quiet --tensorboard --data shapes --train-limit 64 --val-limit 16 --channels 2 --blocks 1 --latent-dim 3 --batch-size 16 --epochs 1 \
    --out "$run"
cp "$run/checkpoint.safetensors" "$scratch"
train --quiet --resume "$run" --epochs 2
# As after a kill, the checkpoint is older than the last steps, which TensorBoard must not show twice.
cp "$scratch/checkpoint.safetensors" "$run"
train --json --resume "$run" --epochs 2 >"$scratch/events.json"
"$python" scripts/check_event_files.py "$run"

# A stand-in for the package wandb prints what the recipe sends.
code_in python docs/run-folder.md >"$scratch/recipe.py"
cat >"$scratch/wandb.py" <<'END'
class Run:
    def log(self, values, step):
        print(step, *sorted(values))


def init(**_):
    return Run()
END
sent=$(PYTHONPATH=$scratch "$python" "$scratch/recipe.py" <"$scratch/events.json")
[ "$(grep -c 'step/total' <<<"$sent")" = "$(grep -c '"event":"step"' "$scratch/events.json")" ]
grep -q '^8 .*epoch/val_total' <<<"$sent"
echo "tensorboard: ok"
