#!/usr/bin/env bash
# Make the virtual environment .venv and install this project with the named extras: launch/setup.sh demo
# Safe to run again. PYTHON chooses the interpreter, VENV the folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:?which extras, for example: demo or test}
venv=${VENV:-.venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
  echo "error: $python is missing or older than 3.10; set PYTHON=/path/to/python3" >&2; exit 2; }
"$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$python" -m venv --clear "$venv"  # also repairs half a one
echo "installing into $venv: a minute or two, and longer the first time for a PyTorch with CUDA"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[$extras]"
# Compiled to bytecode on all cores: pip takes one. Some packages carry templates that are no Python.
"$venv/bin/python" -m compileall -qq -j 0 "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
