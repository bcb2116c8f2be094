#!/usr/bin/env bash
# Set up and run everything that checks this project: lint, types, tests. Arguments go to pytest.
set -euo pipefail
unset CDPATH PYTHONPATH PYTHONHOME PYTHONOPTIMIZE MYPYPATH PYTEST_ADDOPTS
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh test
bin=$(cd "${VENV:-.venv}/bin" && pwd)

"$bin/python" -m compileall -q stylegan_dist  # once, where Python was told to write no bytecode: hundreds of processes follow
"$bin/ruff" check .
# From a folder with nothing but the package: mypy takes a folder torch/ or a file numpy.py in the current one for those.
mkdir -p .mypy_cache/package
ln -sfn ../../stylegan_dist .mypy_cache/package/stylegan_dist
(cd .mypy_cache/package && "$bin/mypy" --config-file ../../pyproject.toml --cache-dir ..)
# Three workers on two cores, each test file on one of them: some tests need one core, others wait; two workers take a third
# longer. In the order of the folders the longest files are not the last, where one worker would wait for the others.
"$bin/pytest" --numprocesses 3 --dist loadfile --no-loadscope-reorder "$@"
