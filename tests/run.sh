#!/usr/bin/env bash
# Set up and check this project: lint, types, and the tests of the heart of everything, in some minutes on two cores.
# --rest: the tests that the above leaves out, without lint and types. --all: everything. Further arguments go to pytest.
set -euo pipefail
unset CDPATH PYTHONPATH PYTHONHOME PYTHONOPTIMIZE MYPYPATH PYTEST_ADDOPTS
cd "$(dirname "${BASH_SOURCE[0]}")/.."
which="not full and not exhaustive"
case ${1:-} in
  --rest) which="full and not exhaustive"; shift ;;
  --all) which="not exhaustive"; shift ;;
esac
bash launch/setup.sh test
bin=$(cd "${VENV:-.venv}/bin" && pwd)

"$bin/python" -m compileall -q stylegan_dist  # once, where Python was told to write no bytecode: hundreds of processes follow
if [ "$which" != "full and not exhaustive" ]; then
  "$bin/ruff" check .
  # From a folder with nothing but the package: mypy takes a folder torch/ or a file numpy.py in the current one for those.
  mkdir -p .mypy_cache/package
  ln -sfn ../../stylegan_dist .mypy_cache/package/stylegan_dist
  (cd .mypy_cache/package && "$bin/mypy" --config-file ../../pyproject.toml --cache-dir ..)
fi
# Three workers on two cores, each test file on one of them: some tests need one core, others wait; two workers take a third
# longer. In the order of the folders the longest files are not the last, where one worker would wait for the others.
"$bin/pytest" --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "$which" "$@"
