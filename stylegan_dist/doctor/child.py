"""The process that carries out checks: what it is told, and how it answers."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from stylegan_dist.doctor.record import Finding, Options, error, not_tried
from stylegan_dist.errors import InputError
from stylegan_dist.redact import redact

# Not `python -m`, which would look for modules in the current folder first: that may have a folder wandb/.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from {module} import {function} as main; " \
         "sys.exit(main(sys.argv[1:]))"
# A check must not believe that it is one process of several, or part of another run.
_FORGOTTEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK",
              "CROSS_SIZE", "LOCAL_SIZE", "STYLEGAN_DIST_OUTCOME")
_FORGOTTEN_KINDS = ("ACCELERATE_", "TORCHELASTIC_", "OMPI_", "PMI_", "MV2_", "SLURM_STEP_")
_LOOK = 0.5       # seconds between two looks at whether the parent is still there
MOST_WORDS = 800  # characters of what another program says


class _Ended(BaseException):
    """The parent has asked this process to end."""


def python_command(module: str, function: str, *words: str) -> list[str]:
    """A command that calls a function with a list of words, in the Python of this process and with its modules."""
    return [sys.executable, "-c", _START.format(module=module, function=function), json.dumps(sys.path), *words]


def own_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Without what launchers and batch systems say of the processes of a run."""
    return {name: value for name, value in env.items() if name not in _FORGOTTEN and not name.startswith(_FORGOTTEN_KINDS)}


def carry_out(words: Sequence[str]) -> None:
    """Call the functions of checks one after another, and write to a pipe what they find, a line of JSON for each.

    Where a check is done, the line is `null`. What is printed goes to stderr.

    Args:
        words: the descriptor of the pipe, and JSON with "parent", the number of the process that asks; "options"; "checks", a
            list of (module, function, name, what it needs); and "failed", names of checks that have failed before.
    """
    def end(*_: object) -> None:
        raise _Ended

    signal.signal(signal.SIGTERM, end)
    os.dup2(2, 1)
    results, order = int(words[0]), json.loads(words[1])
    threading.Thread(target=_end_with_parent, args=[order["parent"]], daemon=True).start()
    os.set_inheritable(results, False)
    options, failed = Options(**order["options"]), set(order["failed"])
    with contextlib.suppress(_Ended, BrokenPipeError), open(results, "w", buffering=1) as pipe:
        for module, function, name, needs in order["checks"]:
            for finding in _findings(module, function, name, failed & set(needs), options):
                if finding.status == "error":
                    failed.add(name)
                print(json.dumps(asdict(finding)), file=pipe)
            print(json.dumps(None), file=pipe)


def _findings(module: str, function: str, name: str, lacking: set[str], options: Options) -> Iterator[Finding]:
    """What a check yields; where it fails, that is a finding."""
    if lacking:
        yield not_tried(name, lacking)
        return
    try:
        yield from getattr(importlib.import_module(module), function)(options)
    except InputError as wrong:  # which says what to do
        yield error(name, str(wrong), "")
    except (Exception, SystemExit) as wrong:
        yield error(name, describe(wrong), "this check has failed by itself: correct what it names, or report it")


def describe(wrong: BaseException) -> str:
    """An exception in one line without secrets."""
    lines = str(wrong).strip().splitlines()
    return redact(f"{type(wrong).__name__}: {lines[0]}" if lines else type(wrong).__name__)


def last_line(text: str) -> str:
    """The last line that says something, without colours and secrets."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    return redact(lines[-1][:MOST_WORDS]) if lines else ""


def _end_with_parent(parent: int) -> None:
    """End this process and what it has started when the parent is gone."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.killpg(os.getpgrp(), signal.SIGKILL)
