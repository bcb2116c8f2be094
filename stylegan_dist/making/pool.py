"""Worker processes over a list of tasks, with progress that the parent reads instead of receiving.

Each task has its own counters in shared memory, which one worker writes and the parent reads: there is
no lock that a killed worker could keep and no message per image.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from tqdm import tqdm

from stylegan_dist.data.workers import Worker, WorkerEnded, end_workers, shared_bytes
from stylegan_dist.errors import InputError
from stylegan_dist.machine import available_cores

_LOOK_SECONDS = 0.1
NOTE_SECONDS = 30.0    # without a sign of life from a worker until a person is told
STUCK_SECONDS = 600.0  # and until that is an error; a large file on a slow disk may take minutes
STOP_SECONDS = 10.0    # for workers to leave their tasks in order


class Progress:
    """Counters that workers and the parent share: one slot for each task."""

    def __init__(self, tasks: int):
        self.__setstate__((shared_bytes(8 * (2 * tasks + 1)), tasks))

    def __getstate__(self) -> tuple[Any, int]:
        return self._memory, len(self.done)

    def __setstate__(self, state: tuple[Any, int]) -> None:
        self._memory, tasks = state
        counters = np.frombuffer(self._memory, np.int64)
        self.done, self.failed, self._stop = counters[:tasks], counters[tasks:2 * tasks], counters[2 * tasks:]

    @property
    def stopped(self) -> bool:
        """The parent wants no more results: leave the task unfinished."""
        return bool(self._stop[0])

    def stop(self) -> None:
        self._stop[0] = 1


def progress_bar(total: int, what: str, unit: str, initial: int = 0) -> tqdm:
    """A progress bar. Where there is no terminal to redraw a line on, lines are few."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=initial, desc=what, unit=" " + unit, mininterval=interval)


def results(function: Callable, tasks: Sequence, workers: int | None, bar: tqdm) -> list[Any]:
    """As `run`: the results in the order of the tasks; workers None: one a core."""
    found: dict[int, Any] = {}
    with bar, closing(run(function, tasks, workers or available_cores(), bar)) as runs:
        found.update(runs)
    return [found[slot] for slot in range(len(tasks))]


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
    Raises: what the function raises; InputError when a worker cannot start, is killed, or is stuck.
    """
    try:
        progress = Progress(len(tasks))
    except OSError as error:
        raise InputError(f"no memory for {len(tasks)} tasks ({error.strerror}): raise ulimit -v") from None
    start, todo = bar.n, iter(range(len(tasks)))
    watches: dict[Worker, _Watch] = {}  # of those at work
    crew: list[Worker] = []
    try:
        for slot in todo:
            worker = Worker(f"worker {len(crew) + 1}", partial(_run_task, function, tasks, progress), "fewer --workers")
            crew.append(worker)
            worker.ask(slot)
            watches[worker] = _Watch(worker, slot, progress)
            if len(crew) == workers:
                break
        while watches:
            ready = wait([worker.pipe for worker in watches], _LOOK_SECONDS)
            bar.update(start + int(progress.done.sum()) - bar.n)
            if failures_allowed is not None and progress.failed.sum() > failures_allowed:
                progress.stop()
            for worker in list(watches):
                if worker.pipe not in ready:
                    watches[worker].look(bar)
                for result in worker.answers() if worker.pipe in ready else ():
                    slot = watches.pop(worker).slot
                    following = next(todo, None)
                    if following is not None:
                        worker.ask(following)
                        watches[worker] = _Watch(worker, following, progress)
                    yield slot, result
    except WorkerEnded as error:
        raise InputError(f"{error}: run the same command again with fewer --workers") from None
    finally:
        progress.stop()
        end_workers(crew, STOP_SECONDS)


def _run_task(function: Callable, tasks: Sequence, progress: Progress, slot: int):
    return function(slot, tasks[slot], progress)


class _Watch:
    """Looks whether a worker gets on with a task. A sign of life: it counts a sample, or uses the CPU."""

    def __init__(self, worker: Worker, slot: int, progress: Progress):
        self.worker, self.slot, self._progress = worker, slot, progress
        self._looked, self._idle, self._signs, self._told = time.monotonic(), 0.0, self._read(), False

    def _read(self) -> tuple:
        return int(self._progress.done[self.slot]), int(self._progress.failed[self.slot]), self.worker.work_done()

    def look(self, bar: tqdm) -> None:
        """Raises: InputError: the worker is stuck."""
        now = time.monotonic()
        if now - self._looked < 1.0:
            return
        # No more than some seconds at a time: this process may have been stopped with its workers.
        self._idle, self._looked = self._idle + min(now - self._looked, 5.0), now
        signs = self._read()
        if signs[-1] is None or signs != self._signs:
            self._idle, self._signs = 0.0, signs
        elif self._idle > STUCK_SECONDS:
            raise InputError(f"{self.worker.describe()}, for {STUCK_SECONDS:g} s by now: see whether its disk or network is "
                             "well, and run the same command again")
        elif self._idle > NOTE_SECONDS and not self._told:
            self._told = True
            bar.write(f"no progress for {NOTE_SECONDS:g} s: {self.worker.describe()}", file=sys.stderr)
