#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call: the tests of tests/gpu, then every measurement. Tables, with versions, go
# to benchmarks/results/gpu/ (or the folder that is given); what fails is said at the end, and stops nothing.
#
#     bash benchmarks/gpu.sh [FOLDER [PART...]]
#     bash benchmarks/gpu.sh results 'step-*' tests       # only parts with these names or patterns; never train and penalty
#
# PYTHON chooses the interpreter. LIMIT is the longest that a part may take, in seconds (default 1800). QUICK=1 makes everything
# small, as a rehearsal that a CPU can do in minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
results=${1:-benchmarks/results/gpu}
shift $(($# > 0))
parts=("$@")
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$results"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=()

keep() {  # keep NAME COMMAND...: run it if it is wanted, show its output, and keep that with the command and the time
  local name=$1 began=$SECONDS part wanted=${#parts[@]}
  shift
  for part in "${parts[@]}"; do if [[ $name == $part ]]; then wanted=0; fi; done
  if [ "$wanted" -gt 0 ]; then return 0; fi
  echo "== $name: $*"
  { echo "\$ $*"; timeout "${LIMIT:-1800}" "$@" 2>&1; local code=$?; echo "($((SECONDS - began)) s, exit code $code)"
    return $code; } | tee "$results/$name.txt" || failed+=("$name")
}

quick=() small=() presets=(cifar10 ffhq256 ffhq1024) batch=64 kimg=20 draws=()
if [ -n "${QUICK:-}" ]; then
  quick=(--rounds 2) presets=(cifar10) batch=2 kimg=0.128 draws=(--images 32 --draws 8 --gradient-draws 4)
  small=(generator.channel_max=16 discriminator.channel_max=16 generator.mapping_layers=2)
fi

keep versions "$python" -c 'import platform, torch; print(platform.python_version(), torch.__version__, torch.version.cuda,
torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", torch.backends.cudnn.version())'
if command -v nvidia-smi > /dev/null; then keep nvidia-smi nvidia-smi; fi
keep doctor "$python" -m stylegan_dist.cli doctor
keep tests "$python" -m pytest -m gpu -p no:cacheprovider tests/gpu

if [ -z "${QUICK:-}" ]; then
  keep ops-ffhq256 "$python" benchmarks/ops.py --shapes ffhq256 --batch 32 --dtypes bfloat16,float32 --layouts nhwc
  keep ops-ffhq256-small-batch "$python" benchmarks/ops.py --shapes ffhq256 --batch 8 --dtypes bfloat16 --layouts nhwc
  keep ops-ffhq256-convolutions "$python" benchmarks/ops.py --shapes ffhq256 --batch 32 --dtypes bfloat16,float32 --layouts nhwc \
    --operators conv,modulated --rounds 5
  keep ops-ffhq1024 "$python" benchmarks/ops.py --shapes ffhq1024 --batch 4 --dtypes bfloat16 --layouts nhwc
  keep ops-stylegan3 "$python" benchmarks/ops.py --shapes stylegan3 --batch 8 --dtypes bfloat16,float32 --layouts nchw,nhwc \
    --operators filtered,filtered_up,filtered_2d --rounds 5
fi
keep ops-cifar10 "$python" benchmarks/ops.py --shapes cifar10 --batch "$batch" --dtypes bfloat16 --layouts nhwc \
  "${quick[@]}"
for preset in "${presets[@]}"; do
  classes=0
  if [ "$preset" = cifar10 ]; then classes=10; fi
  for gpu in h100 h200 a100; do
    keep "roofline-$preset-$gpu" "$python" benchmarks/roofline.py "launch/presets/$preset.yaml" --classes "$classes" \
      --gpu "$gpu" --batch 16 "${small[@]}"
  done
done
if [ -n "${QUICK:-}" ]; then
  keep step-cifar10 "$python" benchmarks/step.py launch/presets/cifar10.yaml --classes 10 run.batch=4 "${quick[@]}" "${small[@]}"
else
  keep step-cifar10 "$python" benchmarks/step.py launch/presets/cifar10.yaml --classes 10
  for batch in 8 32; do
    keep "step-ffhq256-batch$batch" "$python" benchmarks/step.py launch/presets/ffhq256.yaml "run.batch=$batch" \
      "run.batch_gpu=$batch" precision.dtype=bf16 precision.top_resolutions=9 generator.channel_base=16384 \
      discriminator.channel_base=16384
  done
  keep step-ffhq1024-batch16 "$python" benchmarks/step.py launch/presets/ffhq1024.yaml run.batch=16 run.batch_gpu=16 \
    precision.dtype=bf16 precision.top_resolutions=9
fi
keep engines "$python" benchmarks/engines.py launch/presets/cifar10.yaml --worlds 1 "${quick[@]}" run.batch=32 "${small[@]}"
if [ -n "${QUICK:-}" ]; then
  keep memory "$python" benchmarks/memory.py --resolution 32 run.batch=4 "${small[@]}"
else
  keep memory "$python" benchmarks/memory.py
fi
if [ ${#parts[@]} -eq 0 ] && "$python" -c 'import sklearn' 2> /dev/null; then
  "$python" shards/digits.py "$work/png" &&
    "$python" -m stylegan_dist.cli pack "$work/png" "$work/shards" --resolution 32 --channels 1 --labels folders &&
    keep train "$python" launch/train.py launch/presets/demo.yaml "data.shards=$work/shards" "run.dir=$work/run" \
      "run.kimg=$kimg" monitor.wandb=disabled &&
    keep penalty "$python" benchmarks/penalty.py "$work/run" "${draws[@]}"
fi

if [ -z "${QUICK:-}" ]; then  # last, because it compiles for many minutes
  keep ops-ffhq256-compiled "$python" benchmarks/ops.py --shapes ffhq256 --batch 32 --dtypes bfloat16 --layouts nhwc --compile
fi

echo
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]} (see $results)"
  exit 1
fi
echo "all done: $results"
