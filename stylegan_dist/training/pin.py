"""Keeps a checkpoint while another process reads it: `checkpoints/.pin-nimg-*`, for a bounded time."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stylegan_dist.training.lease import STATUS_NAME
from stylegan_dist.training.saved import FOLDER, checkpoint_folder

PIN_SECONDS = 900.0      # a pin that nobody has touched for so long is that of a dead process
REFRESH_SECONDS = 30.0


@contextlib.contextmanager
def pinned(run_dir: Path, nimg: int) -> Iterator[Callable[[], None]]:
    """Inside, a run does not remove this checkpoint. The function that is given is to be called from time to time.

    It is best to look whether the checkpoint is there afterwards: it may have gone a moment before. A folder that cannot be
    written has no pins; nothing else depends on one.
    """
    path = run_dir / FOLDER / f".pin-{checkpoint_folder(run_dir, nimg).name}-{secrets.token_hex(8)}"
    touched = [time.monotonic()]
    with contextlib.suppress(OSError):
        path.touch()

    def refresh() -> None:
        if time.monotonic() - touched[0] > REFRESH_SECONDS:
            touched[0] = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(path)

    try:
        yield refresh
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def is_pinned(run_dir: Path, nimg: int) -> bool:
    """Whether a living process reads this checkpoint. Old pins are removed."""
    found = False
    for path in (run_dir / FOLDER).glob(f".pin-{checkpoint_folder(run_dir, nimg).name}-*"):
        with contextlib.suppress(OSError):
            if _now(run_dir) - path.stat().st_mtime < PIN_SECONDS:
                found = True
            else:
                path.unlink()
    return found


def _now(run_dir: Path) -> float:
    """By the clock of the disk, which has set the times of pins: the run writes status.json every five seconds."""
    with contextlib.suppress(OSError):
        return os.stat(run_dir / STATUS_NAME).st_mtime
    return time.time()
