"""Prints our error message below the traceback of `accelerate launch`, where a user reads it last."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 60  # seconds that a launcher may take to end; torch gives the other ranks 30 to do so
_LAUNCHERS = {"accelerate", "torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch"}
_SPEAKER = """
import os, select, sys
launcher, patience, text = sys.argv[1:]
if select.select([int(launcher)], [], [], int(patience))[0]:
    os.write(2, os.fsencode(text))
"""


def say_line(text: str) -> None:
    """Print a line to stderr in one write: the ranks of a launcher share one pipe, and `print` would write the end apart."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def leave_last_word(text: str) -> None:
    """Have the launcher show `text` as the reason of its failure, and show it once more when the launcher has ended.

    A launcher answers every exit code but 0 with a traceback of its own, below the output of the process. Several processes
    of a launcher may call this. The text of the first one is shown. Does nothing without a launcher, and never fails. Call it
    shortly before the process ends, in a rank that has an error to report.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # the last: a Python built for old kernels has no pidfd_open
        first = _explain(text)
        launcher = os.getppid()
        if first and _is_launcher(launcher):
            _outlive(launcher, text)


def _explain(text: str) -> bool:
    """Put `text` into the table of failures that torch's launcher prints; returns whether no other rank was earlier."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")  # .../RANK/error.json
    if not place:
        return True
    first = True
    try:
        Path(place).parent.with_name("last-word").touch(exist_ok=False)
    except FileExistsError:
        first = False
    when = int(time.time()) + (not first)  # the root cause is the earliest, or the lowest rank in the same second
    Path(place).write_text(json.dumps({"message": {"message": text, "extraInfo": {"timestamp": str(when)}}}))
    return first


def _is_launcher(pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return any(os.path.basename(word) in _LAUNCHERS for word in words)


def _outlive(launcher: int, text: str) -> None:
    """Leave a small process behind that waits for the end of `launcher`, for `PATIENCE` at most, and then says `text`.

    It holds nothing but stderr, which the launcher has open as long as it lives.
    """
    watch = os.pidfd_open(launcher)
    try:
        if os.getppid() != launcher:  # it has ended, and nothing will come below our line
            return
        prefix = "\n" if sys.stderr.isatty() else ""  # the shell's prompt may have been faster
        subprocess.Popen([sys.executable, "-I", "-S", "-c", _SPEAKER, str(watch), str(PATIENCE), f"{prefix}{text}\n"],
                         pass_fds=[watch], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/", start_new_session=True)
    finally:
        os.close(watch)
