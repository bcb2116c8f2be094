"""Requests to stop: a signal, a file in the run's folder, or the end of the time. The run saves its state and ends."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from stylegan_dist import outcome
from stylegan_dist.errors import STOP_SIGNALS, RankLost
from stylegan_dist.files import open_regular

STOP_NAME = "stop"   # the file in a run's folder
LOOK_SECONDS = 1.0   # between two looks for it
EMPTY_LOOKS = 3      # after which an empty file counts: before that, somebody may be about to write a word into it
_PR_SET_PDEATHSIG = 1  # of prctl(2)


class StopRequest:
    """Remembers that this process was asked to stop, until the end of a `with`. A second Ctrl-C ends it at once.

    A signal that this process was told to ignore when it started (nohup, a background job of a shell) stays ignored.

    Args:
        folder: of the run, where a file `stop` is a request, too; None where another rank looks for it.
        until: time.monotonic() at which the run has used up its `run.max_hours`.
    Attributes:
        then: what becomes of a batch job after the stop. A signal or the end of the time asks for another start. A file asks
            for what it says: `requeue`, `hold`, or anything else to end.
        reason: in words, for people; empty for a signal.
    """

    def __init__(self, folder: Path | None = None, until: float = math.inf) -> None:
        self._folder, self._until = folder, until
        self._asked, self._looked, self._empty = False, -math.inf, 0
        self.then: Literal["requeue", "hold", "end"] = "requeue"
        self.reason = ""
        self._previous = {number: signal.signal(number, self._ask) for number in obeyed_signals(os.environ)}

    @property
    def requested(self) -> bool:
        now = time.monotonic()
        if not self._asked and now >= self._until:
            self._asked, self.reason = True, "run.max_hours are over"
        if not self._asked and self._folder is not None and now >= self._looked + LOOK_SECONDS:
            self._looked = now
            word = _word_of(self._folder / STOP_NAME)
            self._empty = self._empty + 1 if word == "" else 0
            if word or self._empty > EMPTY_LOOKS:
                self._asked, self.reason = True, f"by the file {self._folder / STOP_NAME}"
                self.then = "requeue" if word == "requeue" else "hold" if word == "hold" else "end"
        return self._asked

    def _ask(self, number: int, _frame: object) -> None:
        self._asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> StopRequest:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        for number, handler in self._previous.items():
            # A rank that has lost the others ends by itself, and says why before a launcher may end it.
            signal.signal(number, signal.SIG_IGN if isinstance(error, RankLost) else handler)


def forget_requests(folder: Path) -> None:
    """Remove the request of an earlier start, which has not come to obey it. A batch script has done that itself."""
    if outcome.VARIABLE not in os.environ:
        remove_stop_file(folder)


def remove_stop_file(folder: Path) -> None:
    """Take back what asked a run to stop, as it has been obeyed or is out of date."""
    with contextlib.suppress(OSError):
        (folder / STOP_NAME).unlink()


def _word_of(path: Path) -> str | None:
    """The first word of a file, or None if there is no file."""
    try:
        with open_regular(path) as file:
            return file.read(64).decode(errors="replace").strip().partition(" ")[0]
    except FileNotFoundError:
        return None
    except OSError:  # it cannot be read, but it is there, unless the file system has a short fault
        return "" if os.path.lexists(path) else None


def obeyed_signals(env: Mapping[str, str]) -> list[signal.Signals]:
    """The stop signals that ask this process to stop: not those that it has inherited as ignored.

    torch's launcher passes signals on to its ranks and kills the ranks half a minute later. A rank has a session of its own and
    receives no signals of a terminal. It obeys its launcher.
    """
    passed_on = signals_of_launcher(env)
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN or number.name in passed_on]


def signals_of_launcher(env: Mapping[str, str]) -> list[str]:
    """The signals on which torch's launcher ends a run, whatever it has inherited; none without that launcher."""
    if "TORCHELASTIC_RUN_ID" not in env:
        return []
    return env.get("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT").split(",")


def why_nohup_fails(env: Mapping[str, str]) -> str | None:
    """What to do where the run was told to outlive its terminal, but its launcher will not."""
    if "SIGHUP" in signals_of_launcher(env) and _launched_by_nohup(env):
        return ("nohup has no effect on this launcher, which ends the run when its terminal goes: set "
                "PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT where it is started")
    return None


def _launched_by_nohup(env: Mapping[str, str]) -> bool:
    """Whether the launcher was started by nohup, or by a process that ignores SIGHUP, such as a script under nohup.

    Its ranks cannot see this. The launcher sets a handler before it starts them, and a handler becomes the default in a new
    program.
    """
    if os.path.basename(env.get("_", "")) == "nohup":  # shells note there what they start; nohup and the launcher keep it
        return True
    with contextlib.suppress(OSError, LookupError, ValueError):  # no /proc, or what started the launcher has ended
        starter = int(_status(os.getppid())["PPid"])
        return bool(int(_status(starter)["SigIgn"], 16) >> (signal.SIGHUP - 1) & 1)
    return False


def _status(process: int) -> dict[str, str]:
    """What Linux tells about a process."""
    with open(f"/proc/{process}/status", encoding="utf-8", errors="replace") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def end_with_launcher() -> None:
    """Request a stop when the launcher dies.

    Otherwise `accelerate launch` would leave its workers running after `kill -9`. A launcher of one process would do so even
    after SIGTERM.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and sys.platform == "linux":
        parent = os.getppid()
        obeyed = [*obeyed_signals(os.environ), signal.SIGKILL]
        request = signal.SIGTERM if signal.SIGTERM in obeyed else obeyed[0]
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, request)
        if os.getppid() != parent:  # it died before we had asked
            os.kill(os.getpid(), request)
