#!/usr/bin/env bash
# From nothing to pictures: install, pack the handwritten digits of scikit-learn, train on them, with scores, draw, report.
# Uses the GPUs that are there, otherwise two processes on the CPU. Run it again to continue or redraw.
# Arguments are those of stylegan-dist train, for example: launch/demo.sh run.dir=runs/longer run.kimg=100
set -euo pipefail
unset CDPATH PYTHONPATH PYTHONHOME
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=launch/presets/demo.yaml
bash launch/setup.sh demo
bin=${VENV:-.venv}/bin

# What the arguments come to, before anything else is done with them.
settings=$("$bin/python" -I launch/settings.py "$preset" "$@")
{ read -r run; read -r shards; } <<< "$settings"

scores=()
if [ "$shards" = data/digits ]; then
  "$bin/python" shards/digits.py data/digits-png
  "$bin/stylegan-dist" pack data/digits-png data/digits --resolution 32 --channels 1 --labels folders
  # Digits are no photographs: a small classifier of digits says how far the generated ones are from the real ones.
  if ! [ -f data/digits-features/features.json ]; then
    "$bin/stylegan-dist" train-features data/digits data/digits-features --kimg 6
  fi
  scores=(evaluate.every_kimg=8 evaluate.network=data/digits-features evaluate.count=1797)
fi

gpus=$("$bin/python" -I -c 'import torch; print(torch.cuda.device_count())')
processes=2 config=cpu.yaml
for n in 1 2 4; do
  if [ "$n" -le "$gpus" ]; then processes=$n config=8gpu.yaml; fi
done
[ "$processes" -gt 1 ] || config=1gpu.yaml
"$bin/accelerate" launch --config_file "launch/accelerate/$config" --num_processes "$processes" \
  launch/train.py "$preset" run.world_size="$processes" ${scores[@]+"${scores[@]}"} "$@"
for argument in "$@"; do case $argument in -*) exit 0;; esac; done  # --dry-run, --help: nothing was trained

"$bin/stylegan-dist" generate "$run" --seeds 0-79 --columns 10 --out "$run/pictures"
"$bin/stylegan-dist" report "$run"
echo "Samples, one digit per column: $run/pictures/grid.png"
echo "How they came about, from noise on, with curves and scores: $run/report.html"
