"""A polite stop: the first SIGTERM, Ctrl-C or lost terminal asks the run to save its state and end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from stylegan_dist.errors import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1  # of prctl(2)


class StopRequest:
    """Remembers that this process was asked to stop. A second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}

    def _ask(self, number: int, _frame: object) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def close(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Be asked to stop when the launcher dies.

    Killed with -9, `accelerate launch` would leave its workers behind for ever; where it has started a
    single process, even with SIGTERM.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we had asked
            os.kill(os.getpid(), signal.SIGTERM)
