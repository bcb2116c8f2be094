#!/usr/bin/env bash
# Set up and run everything that checks this project: lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh test
bin=${VENV:-.venv}/bin

"$bin/ruff" check .
"$bin/mypy"
"$bin/python" -m pytest "$@"
