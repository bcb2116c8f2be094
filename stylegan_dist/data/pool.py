"""Worker processes over a list of tasks, with progress that the parent reads instead of receiving.

Each task has its own counters in shared memory, which one worker writes and the parent reads: there is
no lock that a killed worker could keep and no message per image.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from stylegan_dist.errors import InputError

_LOOK_SECONDS = 0.1

# In a worker: what it runs and where it reports, given once when it starts.
_work: tuple[Callable, Progress] | None = None


class Progress:
    """Counters that workers and the parent share: one slot for each task."""

    def __init__(self, context, tasks: int):
        self.done = context.RawArray("q", tasks)
        self.failed = context.RawArray("q", tasks)
        self._stop = context.RawValue("b", 0)

    @property
    def stopped(self) -> bool:
        """The parent wants no more results: leave the task unfinished."""
        return bool(self._stop.value)

    def stop(self) -> None:
        self._stop.value = 1


def run(
    function: Callable, tasks: Sequence, workers: int, bar: tqdm, failures_allowed: int | None = None
) -> Generator[tuple[int, Any], None, None]:
    """Call `function(slot, task, progress)` for every task in worker processes.

    The function adds to `progress.done[slot]` and `progress.failed[slot]` as it goes, and returns early
    when `progress.stopped`, which happens when another task has raised, when the caller leaves the loop,
    or when the sum of the failures exceeds `failures_allowed`.

    Args:
        function: picklable, as are its task and result.
        bar: shows the sum of `done`, beyond what it shows already.
    Yields: (slot, result) as tasks end, in no particular order.
    Raises: what the function raises; InputError when a worker is killed.
    """
    # Forked workers need not import everything again; elsewhere than on Linux forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    progress = Progress(context, len(tasks))
    start = bar.n
    executor = ProcessPoolExecutor(
        min(workers, max(1, len(tasks))), context, initializer=_start_worker,
        initargs=(function, progress, os.getpid()),
    )
    try:
        slots = {executor.submit(_run_task, slot, task): slot for slot, task in enumerate(tasks)}
        waiting = set(slots)
        while waiting:
            ended, waiting = wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED)
            bar.update(start + sum(progress.done) - bar.n)
            if failures_allowed is not None and sum(progress.failed) > failures_allowed:
                progress.stop()
            for future in ended:
                yield slots[future], future.result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed, probably because the memory was full: run the same command again "
            "with fewer --workers"
        ) from None
    finally:
        progress.stop()
        executor.shutdown(cancel_futures=True)


def _start_worker(function: Callable, progress: Progress, parent: int) -> None:
    global _work
    _work = (function, progress)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and stops us in order
    end_with_parent(parent)


def end_with_parent(parent: int) -> None:
    """In a worker: end it when its parent was killed. It would otherwise wait for tasks for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _run_task(slot: int, task):
    assert _work is not None, "set when the worker started"
    function, progress = _work
    return function(slot, task, progress)
