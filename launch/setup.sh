#!/usr/bin/env bash
# Make the virtual environment .venv and install this project with the named extras: launch/setup.sh demo
# Run it again at any time: it does nothing where all is there, goes on where it was interrupted, and repairs what is broken.
# PYTHON chooses the interpreter, VENV the folder; pip's own settings (PIP_INDEX_URL, https_proxy, ...) count as ever.
set -euo pipefail
unset CDPATH PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER  # what is meant for another Python, or for another place
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:?which extras, for example: demo or test}
venv=${VENV:-.venv}
python=${PYTHON:-python3}
log=$venv/install.log
began=$SECONDS
job=

fail() { printf 'error: %s\n' "$@" >&2; exit 2; }
ready() { "$venv/bin/python" -I launch/venv_state.py ready "$extras" 2> /dev/null; }
has_pip() { "$venv/bin/python" -I -m pip --version > /dev/null 2>&1; }
release() { "$1" -I -c 'import sys; print(*sys.version_info[:2], sep=".")' 2> /dev/null; }

step() {  # step COMMAND...: run it with its output in the log, and say what it does: on a terminal at once, else now and then
  local doing code=0 said=0 width=${COLUMNS:-80}
  set -m  # a process group of its own, which is ended as a whole
  "$@" < /dev/null >> "$log" 2>&1 &
  job=$!
  set +m
  while kill -0 "$job" 2> /dev/null; do
    doing=$(grep -aoE '^ *(Collecting|Downloading|Building|Installing|Compiling) .*' "$log" | tail -n 1) || doing='Starting pip'
    if [ -t 1 ]; then
      printf '\r\033[K%s' "$(printf '  %3d s  %s' $((SECONDS - began)) "$(sed 's/^ *//; s/ (from .*//' <<< "$doing")" | cut -c "1-$((width - 1))")"
    elif [ $((SECONDS - began - said)) -ge 20 ]; then
      said=$((SECONDS - began))
      sed "s/^ */  $said s  /; s/ (from .*//" <<< "$doing" | cut -c 1-120
    fi
    sleep 0.5
  done
  wait "$job" || code=$?
  job=
  if [ -t 1 ]; then printf '\r\033[K'; fi
  return "$code"
}

ended() {
  if [ -n "$job" ]; then
    kill -- "-$job" 2> /dev/null || true
    printf '\ninterrupted; the same command goes on\n' >&2
  fi
}
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ -z "${PYTHON:-}" ] || [ "$(release "$python")" = "$(release "$venv/bin/python")" ]; then
  if ready; then echo "$venv is complete ($extras): nothing to install"; exit 0; fi
fi

version=$(release "$python") || fail "$python cannot be run: install Python 3.10 or later, or set PYTHON=/path/to/python3"
"$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$python is Python $version, and 3.10 or later is needed: set PYTHON=/path/to/python3"
"$python" -I -c 'import venv, ensurepip' 2> /dev/null ||
  fail "$python has no complete venv module: install it (Debian, Ubuntu: apt install python$version-venv), or set PYTHON=/path/to/python3"
[ -w . ] || fail "$PWD cannot be written by $(id -un 2> /dev/null || id -u): make the clone in a folder of your own"
if [ -n "${VENV:-}" ] && [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
  fail "VENV=$venv is a folder with other things in it: name one that is new or a virtual environment"
fi
mkdir -p "$venv" 2> /dev/null && [ -w "$venv" ] || fail "$venv cannot be made or written: set VENV=/another/folder"
exec 9< launch/setup.sh
if command -v flock > /dev/null && ! flock -n 9; then  # NFS may know no such locks: then it waits for nobody
  echo "waiting: another launch/setup.sh installs here"
  flock 9 || true
  if ready; then echo "$venv is complete ($extras): nothing to install"; exit 0; fi
fi

echo "installing into $venv: some two minutes and 1.5 GB of disk; several times that with a PyTorch for CUDA ($log has the details)"
if [ -n "${PYTHON:-}" ] && [ "$version" != "$(release "$venv/bin/python")" ] || ! has_pip; then
  said=$("$python" -I -m venv --clear "$venv" 2>&1) || fail "no virtual environment can be made in $venv: ${said##*$'\n'}"
fi
: > "$log"
"$venv/bin/python" -I launch/venv_state.py mend >> "$log"
if ! step "$venv/bin/python" -I -m pip install --disable-pip-version-check --no-input --no-color --progress-bar off --no-compile \
  --constraint constraints.txt --editable ".[$extras]"; then
  echo "the last lines of $log:" >&2
  tail -n 12 "$log" | cut -c 1-300 | sed 's/^/  /' >&2
  if grep -qaE 'No space left|Disk quota' "$log"; then
    fail "there is no room for the packages: make some, or set VENV (and TMPDIR) to a folder with more"
  elif grep -qaE 'Retrying|ConnectionError|Could not fetch URL|No matching distribution|Temporary failure in name|SSLError' "$log"; then
    fail "pip found no package index that has what is needed: check the network and https_proxy, or set PIP_INDEX_URL to a
  mirror; without a network, PIP_NO_INDEX=1 PIP_FIND_LINKS=/folder/of/wheels"
  fi
  fail "pip could not install what is needed; mend what it says above, and run the same command again"
fi
# Compiled to bytecode on all cores: pip takes one. Some packages carry templates that are no Python.
echo "Compiling to bytecode" >> "$log"
step "$venv/bin/python" -I -m compileall -qq -j 0 \
  "$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
"$venv/bin/python" -I launch/venv_state.py done "$extras"
echo "installed into $venv in $((SECONDS - began)) s"
