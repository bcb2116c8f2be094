"""Tells the script that started a run how the run has ended. Launchers turn every exit code but 0 into 1."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

from stylegan_dist.redact import redact

VARIABLE = "STYLEGAN_DIST_OUTCOME"  # a path in a folder that all ranks share

Outcome = Literal["finished", "stopped requeue", "stopped hold", "stopped end", "diverged", "failed"]


def outcome_is_wanted() -> bool:
    """Whether a script waits for the outcome of this run."""
    return bool(os.environ.get(VARIABLE))


def leave_outcome(outcome: Outcome, message: str = "") -> None:
    """Write the outcome and one line for people to the file that `STYLEGAN_DIST_OUTCOME` names, unless it is there already.

    Of several ranks the first one is right: what the others see is its consequence. Does nothing without that variable,
    and never fails.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        return
    text = f"{outcome}\n{redact(message).strip().partition(chr(10))[0]}\n".encode()
    with contextlib.suppress(OSError):
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.write(file, text)  # one write, so that nobody reads half of it
            os.fsync(file)
        finally:
            os.close(file)
