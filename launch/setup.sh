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
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing into $venv (the first time takes a minute or two)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]"
