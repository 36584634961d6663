#!/usr/bin/env bash
# Train RetinaNet on the embedded digits, test it and draw what it finds. `make demo` sets up .venv and calls this.
set -euo pipefail
cd "$(dirname "$0")/.."

config=configs/retinanet/retinanet_effnet-lite0_digits.py
out=work_dirs/demo

step() { echo "demo: $1"; }
trap 'echo "demo: the step above failed (exit $?)" >&2' ERR

step "training $config into $out"
python tools/train.py "$config" --work-dir "$out"
checkpoint=$(cat "$out/last_checkpoint")
step "testing $checkpoint"
python tools/test.py "$config" "$checkpoint" --out "$out/metrics.json"
step "drawing $out/predictions.png"
python tools/demo_grid.py "$config" "$checkpoint" --out "$out/predictions.png"
step "done; figures in $out/metrics.json, pictures in $out/predictions.png"
