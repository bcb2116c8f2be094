#!/usr/bin/env bash
# Set up and run everything that checks this project: lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh test
bin=${VENV:-.venv}/bin

"$bin/python" -m compileall -q stylegan_dist  # once, where Python was told to write no bytecode: hundreds of processes follow
"$bin/ruff" check .
"$bin/mypy"
# Three workers on two cores, each test file on one of them: some tests need one core, others wait; two workers take a third
# longer. In the order of the folders the longest files are not the last, where one worker would wait for the others.
"$bin/python" -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder "$@"
