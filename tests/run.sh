#!/usr/bin/env bash
# Set up and run everything that checks this project: lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh test
bin=${VENV:-.venv}/bin

"$bin/python" -m compileall -q stylegan_dist  # once, where Python was told to write no bytecode: hundreds of processes follow
"$bin/ruff" check .
"$bin/mypy"
# Two workers, each test file on one of them: much of the time a test needs one core, or waits. In the order of the folders
# the longest files are not the last, where one worker would wait for the other.
"$bin/python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
