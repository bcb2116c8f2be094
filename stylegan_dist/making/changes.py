"""Has a source changed since it was packed? Sizes and times are compared first; where these differ, every byte.

So a call that has nothing to do is fast, and a source that was only copied is still the same.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from stylegan_dist.errors import Interrupted
from stylegan_dist.files import write_whole
from stylegan_dist.making import pool
from stylegan_dist.making.shard_writer import Job, Task, content_of

STATE_NAME = ".source"  # of the set's folder; without it all bytes are compared


def contents_of(job: Job, tasks: Sequence[Task], workers: int | None) -> list[str]:
    """What is in the files of shards, read again: a digest for each."""
    bar = pool.progress_bar(sum(len(task.items) for task in tasks), "comparing", job.packing.noun)
    try:
        return pool.results(partial(content_of, job), tasks, workers, bar)
    except KeyboardInterrupt:
        raise Interrupted("interrupted while the source was compared: run the same command again") from None


def combined(contents: Sequence[str]) -> str:
    """One digest of those of all shards, in their order."""
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def kept_state(out: Path) -> str:
    """The state that the source had when a set was packed; "" where nobody knows."""
    try:
        return (out / STATE_NAME).read_text()
    except (OSError, ValueError):
        return ""


def keep_state(out: Path, state: str) -> None:
    """Remember it."""
    with contextlib.suppress(OSError):  # a set that only others may change; the next call compares again
        write_whole(out / STATE_NAME, state)
