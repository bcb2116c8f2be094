"""What trackers have in common: each is a copy of the record of a run, made by a thread of its own.

A tracker may be slow, out of reach or crash. One background thread with a bounded queue therefore makes every call into it.
`log` and its siblings return at once and cannot raise. The first failure prints one warning. After `MAX_FAILURES` in a row the
tracker turns itself off. No data is lost then, because the folder of the run has every record, and a tracker that is new to the
run is given all of it (`history.py`).
"""

from __future__ import annotations

import abc
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylegan_dist.errors import EXIT_OK
from stylegan_dist.files import try_lock, unlock_and_close
from stylegan_dist.machine import versions
from stylegan_dist.monitor.histograms import Histogram
from stylegan_dist.monitor.history import Results, history, is_clip, keys_beyond
from stylegan_dist.provenance import source_state
from stylegan_dist.redact import redact
from stylegan_dist.scores_file import Evaluation, Score

MAX_FAILURES = 3          # in a row
QUEUE_LENGTH = 256        # calls; when a tracker is this far behind, calls are dropped
LOCK_SECONDS = 90.0       # to wait for another process that writes to the same tracker, in the background
KILL_SECONDS = 3.0        # for the thread to end, once nothing is left that it waits for
BOOK_NAME, LOCK_NAME = "given.json", ".writer"


@dataclass(frozen=True)
class Segment:
    """A training run from one of its starts on.

    Attributes:
        run_dir: folder of the run; must exist
        number:  restarts so far; 0 for the first start
        nimg:    images seen at the checkpoint that it continues from
    """

    run_dir: Path
    number: int = 0
    nimg: int = 0


class Tracker(abc.ABC):
    """A copy of the record of a run. For rank 0, and for an evaluator when the training has ended.

    Args:
        folder:  of the tracker, in that of the run
        shown:   nested dict of plain values, shown with the run; secrets in it are masked
        say:     receives one line of information; may be called from another thread
        warn:    receives one line of warning; may be called from another thread
    """

    TITLE = ""  # what it is called in messages
    finish_timeout = 30.0  # seconds to wait for it at the end
    early_timeout = 10.0   # at the end of a run that was interrupted or has failed

    def __init__(self, segment: Segment, folder: str, shown: Mapping[str, Any], say: Callable[[str], None],
                 warn: Callable[[str], None]):
        self._run_dir, self._folder, self._segment = segment.run_dir, segment.run_dir / folder, segment.number
        self._shown, self._say, self._warn = shown, say, warn
        self._nimg = segment.nimg  # images seen; of the thread, as all that follows the queue
        self._failures = 0         # in a row
        self._warned = False
        self._on = True
        self._jobs: queue.Queue = queue.Queue(QUEUE_LENGTH)
        self._row_at = -1          # images at the last row of metrics
        self._pictures: set[tuple[str, int]] = set()  # names and images of those that came with the history
        self._results = Results(self._run_dir, self._folder / BOOK_NAME)
        self._lock: int | None = None
        self._thread: threading.Thread | None = None

    def _open(self, on: bool = True) -> None:
        """The end of the constructor: start the thread, or turn the tracker off."""
        self._on = on
        if on:
            # A daemon: a tracker that hangs must not keep the process alive.
            self._thread = threading.Thread(target=self._work, name=f"{self.TITLE} tracker", daemon=True)
            self._thread.start()

    # What the monitor calls

    def log(self, metrics: Mapping[str, float], nimg: int) -> None:
        """Record metrics by name at `nimg` images, and what evaluators have left since the last call."""
        def call() -> None:
            self._nimg = nimg
            self._take_scores()
            self._log(metrics, nimg, self._segment, None)
            self._take_files()

        self._submit(call)

    def image(self, name: str, path: str | os.PathLike, nimg: int) -> None:
        """Record a picture or a clip, which must stay until it has been read in the background.

        PNG, WebP, GIF, MP4 or WebM, or a sound as WAV; a tracker may leave out what it cannot show.
        """
        def call() -> None:
            if (name, nimg) not in self._pictures:  # else it was drawn before the thread began, and came with the history
                self._file(name, Path(path), nimg)

        self._submit(call)

    def histogram(self, name: str, histogram: Histogram, nimg: int) -> None:
        """Record a histogram."""
        self._submit(lambda: self._write_histogram(name, histogram, nimg))

    def checkpoint(self, folder: Path, nimg: int) -> None:
        """Record where a checkpoint is; it may be gone when that happens."""
        self._submit(lambda: self._write_checkpoint(folder, nimg) if folder.is_dir() else None)

    def alert(self, title: str, text: str) -> None:
        """Tell a person what should be known at once."""
        self._submit(lambda: self._write_alert(title, text))

    def go_back(self, nimg: int) -> None:
        """The run goes back to `nimg` images; what was recorded beyond is abandoned."""
        left = keys_beyond(self._run_dir, nimg)  # now: when the thread comes to it, there may be new ones

        def call() -> None:
            self._nimg = nimg
            self._results.abandon(left)
            self._pictures = {(name, at) for name, at in self._pictures if at <= nimg}  # others will be drawn again
            self._go_back(nimg)

        self._submit(call)

    def finish(self, exit_code: int) -> None:
        """Record what is left, and close. Later calls do nothing.

        Returns within the time that `_deadline` gives it and `KILL_SECONDS`, whatever the tracker does.
        """
        if self._thread is None:
            return
        deadline = self._deadline(exit_code)
        thread, self._thread = self._thread, None
        self._before_end()
        try:
            with contextlib.suppress(queue.Full):  # then the thread is stuck, and the join finds that out
                last = (("logging", self._take_scores), ("logging", self._take_files), ("finish", lambda: self._end(exit_code)))
                for job in (*last, None):
                    if self._on:
                        self._jobs.put(job, timeout=max(0.0, deadline - time.monotonic()))
            thread.join(max(0.0, deadline - time.monotonic()))
        finally:  # also when Ctrl-C ends the wait
            self._on, self._warned = False, True
            if thread.is_alive():
                self._warn(f"{self.TITLE} did not finish in time and is ended{self._remedy()}")
            self._kill()
            thread.join(KILL_SECONDS)

    # What a tracker does; on its thread, but where that is said

    @abc.abstractmethod
    def _start(self) -> None:
        """Open it, and give it the history that it lacks. It may set `_on` to False."""

    @abc.abstractmethod
    def _end(self, exit_code: int) -> None: ...

    @abc.abstractmethod
    def _write_row(self, metrics: Mapping[str, float], nimg: int, segment: int, when: float | None) -> None:
        """Args: when: unix seconds, None for now."""

    @abc.abstractmethod
    def _write_picture(self, name: str, path: Path, nimg: int, clip: bool) -> None: ...

    @abc.abstractmethod
    def _write_histogram(self, name: str, histogram: Histogram, nimg: int) -> None: ...

    @abc.abstractmethod
    def _write_score(self, one: Evaluation, scores: Mapping[str, Score]) -> None:
        """Record scores of a checkpoint, over the images that it has seen."""

    def _write_checkpoint(self, folder: Path, nimg: int) -> None:  # noqa: B027 - a tracker may have nothing for it
        pass

    @abc.abstractmethod
    def _write_alert(self, title: str, text: str) -> None: ...

    @abc.abstractmethod
    def _go_back(self, nimg: int) -> None: ...

    def _close(self) -> None:  # noqa: B027 - as above
        """The last call of the thread, also after failures."""

    def _deadline(self, exit_code: int) -> float:
        """By when `finish` returns, in the time of `time.monotonic`. On the caller's thread."""
        return time.monotonic() + (self.finish_timeout if exit_code == EXIT_OK else self.early_timeout)

    def _before_end(self) -> None:  # noqa: B027 - as above
        """On the caller's thread."""

    def _kill(self) -> None:  # noqa: B027 - as above
        """End what the thread may be waiting for. On the caller's thread."""

    def _remedy(self) -> str:
        """What to do where the end has failed, as the end of a sentence."""
        return f"; {self._run_dir} has everything"

    # The thread

    def _submit(self, call: Callable[[], object]) -> None:
        if not self._on:
            return
        try:
            self._jobs.put_nowait(("logging", call))
        except queue.Full:
            self._warn_once(f"{self.TITLE} does not keep up, some records are left out there; metrics.jsonl has all of them")

    def _work(self) -> None:
        """Start, make the calls in order until None comes, close."""
        try:
            self._start()
        except Exception as error:
            self._turn_off(f"{self.TITLE} is off, it did not start ({brief(error)}); metrics.jsonl has everything")
        while self._on and (job := self._jobs.get()) is not None:
            what, call = job
            try:
                call()
                self._failures = 0
            except Exception as error:
                self._failures += 1
                remedy = self._remedy() if what == "finish" else ""
                self._warn_once(f"{self.TITLE} failed in {what} ({brief(error)}); metrics.jsonl has everything{remedy}")
                if self._failures >= MAX_FAILURES:
                    self._turn_off(f"{self.TITLE} is off after {MAX_FAILURES} failures in a row")
        self._close()
        if self._lock is not None:
            unlock_and_close(self._lock)

    def _claim(self) -> None:
        """Make the folder, and be the only process that writes there, as far as the file system has locks."""
        self._folder.mkdir(exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{self._folder} is not writable")
        self._lock = os.open(self._folder / LOCK_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + LOCK_SECONDS
        while not try_lock(self._lock, needed=False):
            if time.monotonic() > deadline or not self._on:
                raise TimeoutError(f"another process writes to {self._folder}")
            time.sleep(0.2)

    def _give_history(self, beyond: int) -> None:
        """Record what the run has recorded with more than `beyond` images, up to where it is."""
        self._take_scores()
        for moment in history(self._run_dir, beyond, self._nimg):
            if moment.metrics is not None:
                self._log(moment.metrics, moment.nimg, moment.segment, moment.time)
            for name, histogram in moment.histograms.items():
                self._write_histogram(name, histogram, moment.nimg)
            for name, path in moment.pictures.items():
                with contextlib.suppress(OSError, ValueError):  # damaged, or going at this moment
                    self._write_picture(name, path, moment.nimg, clip=False)
                    self._pictures.add((name, moment.nimg))
        self._take_files()

    def _log(self, metrics: Mapping[str, float], nimg: int, segment: int, when: float | None) -> None:
        if nimg > self._row_at:  # else it has come with the history
            self._write_row(metrics, nimg, segment, when)
            self._row_at = nimg

    def _file(self, name: str, path: Path, nimg: int) -> None:
        if not self._results.has_file(path):
            self._results.given_file(path)  # first: a damaged one would fail again and again
            self._write_picture(name, path, nimg, is_clip(path))

    def _take_scores(self) -> None:
        """Record the scores that evaluators have left in the folder of the run."""
        for one, scores in self._results.scores(self._nimg):
            settings = self._settings_of(one)
            self._write_score(one, {name + settings: score for name, score in scores.items()})
            self._results.given(one, set(scores))

    def _settings_of(self, one: Evaluation) -> str:
        """What is added to the names of scores with other settings than those of the run's configuration: other curves."""
        count, data = self._shown.get("evaluate", {}).get("count", one.count), self._shown.get("data_fingerprint", one.data)
        parts = [f"{one.count}" if one.count != count else "", f"seed{one.seed}" if one.seed else "",
                 f"data{one.data[:8]}" if one.data != data else ""]
        return "".join(f"_{part}" for part in parts if part)

    def _take_files(self) -> None:
        """Record their pictures and clips, but damaged ones."""
        for name, path in self._results.files():
            with contextlib.suppress(OSError, ValueError):
                self._file(name, path, self._nimg)
        self._results.save()

    def _about(self) -> dict[str, Any]:
        """What is shown with the run. Secrets in it are masked."""
        return redact({**self._shown, "source": source_state(), "versions": dict(versions())})

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(text)

    def _turn_off(self, text: str) -> None:
        if self._on:  # else the run has ended without us
            self._warn(text)
        self._on = False


def brief(error: Exception) -> str:
    """An error in one line, without secrets and of bounded length."""
    return " ".join(redact(f"{type(error).__name__}: {error}").split())[:200]
