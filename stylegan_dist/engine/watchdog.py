"""Reports a training step that hangs, and ends the process if it goes on to hang, so that the run can be started again.

The main thread may be inside a collective or a read that nothing can interrupt. So a thread looks at the clock. It never waits
for a disk, the network or a device.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stylegan_dist.engine.stacks import run_bounded, write_stacks
from stylegan_dist.engine.watch import BEAT_SECONDS, Watch
from stylegan_dist.errors import EXIT_FAILURE
from stylegan_dist.last_word import leave_last_word, say_line
from stylegan_dist.ranks import Ranks
from stylegan_dist.redact import redact

LOOK_SECONDS = 1.0
LEAST_STEPS = 20        # of this start before there is a limit; also, every phase must have taken place once
REMEMBERED_STEPS = 100  # so a first step that compiled is forgotten then
PATIENCE = 20.0         # times the longest part of the remembered steps: what counts as hanging
HOOK_SECONDS = 5.0      # for each of `on_death`, and for the last line


class StepLimit:
    """How long a part of a step, waiting for data or training, may take; learned from those of this start.

    Args:
        least: seconds that a part may take in any case: run.hang_seconds.
        most: seconds beyond which the limit does not go.
    """

    def __init__(self, least: float, most: float):
        self._least, self._most = least, most
        self._seen: deque[float] = deque(maxlen=2 * REMEMBERED_STEPS)
        self._needed = 2 * LEAST_STEPS

    def expect(self, interval: int) -> None:
        """Some phases take place every `interval` steps only, and the first time may take long."""
        self._needed = min(2 * max(LEAST_STEPS, interval + 1), 2 * REMEMBERED_STEPS)

    def add(self, seconds: float) -> None:
        """A part of a step has taken so long."""
        self._seen.append(seconds)

    @property
    def longest(self) -> float:
        """Of the parts remembered, in seconds."""
        return max(self._seen, default=0.0)

    @property
    def seconds(self) -> float | None:
        """The limit; None before enough was seen."""
        if len(self._seen) < self._needed:
            return None
        return min(max(self._least, PATIENCE * self.longest), self._most)


class Watchdog:
    """Looks every second at how long this rank has been in its stage.

    Time counts only while this thread runs: a job that was suspended, or a process that was stopped, does not hang.

    Args:
        ranks: says what this rank does, and since when.
        hosts: the machines of all ranks, in their order.
        watch: knows what the other ranks do; None where there are none.
        least: seconds that a step may take in any case.
        timeout: run.timeout.
    Attributes:
        on_death: called with the error before the process ends; each may take `HOOK_SECONDS`.
    """

    def __init__(self, ranks: Ranks, hosts: Sequence[str], watch: Watch | None, least: float, timeout: float):
        self._ranks, self._hosts, self._watch = ranks, hosts, watch
        self._report_after = max(2 * BEAT_SECONDS, timeout / 2)  # in a stage that has no limit
        self._limit = StepLimit(least, timeout / 2)  # so that the process ends before a backend ends it without a name
        self._watching_steps = False
        self._stage: tuple[float, bool] = (time.monotonic(), False)  # since when; whether it is part of a step
        self._spent, self._reported = 0.0, False
        self._folder: Path | None = None
        self._stacks = ""  # where they are
        self._note: Callable[[str], None] = lambda text: None
        self._dying = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.on_death: list[Callable[[str], None]] = []
        if watch is not None:
            self._start()

    def entered(self, step: bool) -> None:
        """This rank does something else from now on, perhaps a part of a step."""
        now, (since, was_step) = time.monotonic(), self._stage
        if was_step:
            self._limit.add(now - since)
        self._stage = (now, step)

    @contextlib.contextmanager
    def watching_steps(self, folder: Path, interval: int, note: Callable[[str], None]) -> Iterator[None]:
        """Inside, steps have a limit.

        Args:
            folder: for stacks; is made when one is written, and its parent must exist.
            interval: the steps between two of the rarest phase.
            note: takes lines for a log.
        """
        self._folder, self._note = folder, note
        self._limit.expect(interval)
        self._watching_steps = True
        self._start()
        try:
            yield
        finally:
            self._watching_steps = False
            self.entered(False)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="watchdog")
            self._thread.start()

    def end(self) -> None:
        """Stop looking. Does not return where the process is about to be ended."""
        self._ended.set()
        if self._dying and self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        seen, looked = self._stage, time.monotonic()
        while not self._ended.wait(LOOK_SECONDS):
            stage, now = self._stage, time.monotonic()
            if stage is not seen:
                seen, self._spent, self._reported = stage, 0.0, False
            self._spent += min(now - looked, 2 * LOOK_SECONDS)
            looked = now
            self._judge(stage)

    def _judge(self, stage: tuple[float, bool]) -> None:
        limit = self._limit.seconds if stage[1] and self._watching_steps else None
        if limit is None and self._watch is None:
            return
        if self._spent > (limit or self._report_after) and not self._reported:
            self._reported = True
            threading.Thread(target=self._report, args=(stage, limit is not None), daemon=True).start()
            return
        hangs = limit is not None and self._spent > 2 * limit
        if hangs or (self._reported and self._watch is not None and self._watch.others_gone()):
            self._die(stage)

    def _report(self, stage: tuple[float, bool], hangs: bool) -> None:
        """Write the stacks, and on one rank that waits, say which rank is late."""
        doing, nimg, *_ = self._ranks.where()
        what = f"{doing} at {nimg} images, for {self._spent:.0f} s"
        self._stacks = write_stacks(self._folder, self._ranks.rank, f"{self._name()} is {what}")
        place = f"the stacks of all threads are in {self._stacks}"
        if hangs:
            self._note(f"WARNING: a training step hangs: {self._name()} is {what}, and the longest before took "
                       f"{self._limit.longest:.1f} s; {place}")
        if self._watch is None:
            say_line(f"a training step hangs: {what}, and the longest before took {self._limit.longest:.1f} s; {place}")
            return
        late, text = self._watch.look()
        if stage is self._stage and late and self._ranks.rank == min(set(range(len(self._hosts))) - set(late), default=-1):
            say_line(f"waiting for other ranks for {self._spent:.0f} s: {text}; {place}")
            self._note(f"WARNING: {text}")

    def _die(self, stage: tuple[float, bool]) -> None:
        """End the process with the exit code of RankLost."""
        doing, nimg, *_ = self._ranks.where()
        late = f"; {self._watch.who_is_late(closed=False)}" if self._watch is not None else ""
        if stage is not self._stage or self._ended.is_set():  # it has gone on in the meantime
            return
        self._dying = True
        before = f", where the longest before took {self._limit.longest:.1f} s" if stage[1] else ", and other ranks have gone"
        stacks = f"; the stacks of all threads are in {self._stacks}" if self._stacks else ""
        text = redact(f"error: {self._name()} was {doing} at {nimg} images for {self._spent:.0f} s{before}{late}{stacks}; the "
                      "run continues from its last checkpoint")
        if self._watch is not None:
            self._watch.end(text.removeprefix("error: "), gave_up=True)
        for hook in (self._note, *self.on_death, say_line, leave_last_word):
            run_bounded(functools.partial(hook, text), HOOK_SECONDS)
        os._exit(EXIT_FAILURE)

    def _name(self) -> str:
        return f"rank {self._ranks.rank} ({self._hosts[self._ranks.rank]}, process {os.getpid()})"
