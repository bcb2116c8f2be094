"""The monitor of a run: what the training loop talks to, on rank 0."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from stylegan_dist.monitor.console import Console
from stylegan_dist.monitor.jsonl import MAX_PENDING, MetricsFile, damaged_path
from stylegan_dist.monitor.wandb_tracker import WandbTracker

METRICS_NAME = "metrics.jsonl"
LOG_NAME = "log.txt"


class Monitor:
    """Console, log.txt, metrics.jsonl and W&B behind one interface. Failures of any of them are warnings.

    Args:
        run_dir:     folder of the run; must exist
        segment:     restarts so far; 0 for the first start
        resume_nimg: images seen at the checkpoint this process continues from; records beyond it are dropped
        total_nimg:  images to see in the whole run, for percentage and ETA
        config:      the resolved configuration as nested plain values, for W&B
        wandb_mode:  "auto", "online", "offline" or "disabled"; see `WandbTracker`, also for the next three
        quiet:       keep everything but warnings off the terminal

    Raises:
        OSError: metrics.jsonl cannot be opened or cut back to the checkpoint: the record of the run would be wrong.
        ValueError: an unknown wandb_mode.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        *,
        segment: int,
        resume_nimg: int,
        total_nimg: int,
        config: dict,
        wandb_mode: str = "auto",
        wandb_project: str | None = None,
        wandb_entity: str | None = None,
        wandb_name: str | None = None,
        quiet: bool = False,
    ):
        run_dir = Path(run_dir)
        self._segment = segment
        self._total_nimg = total_nimg
        self._waiting = self._lost = self._renewed = 0  # records, and files, that warnings have told of
        self._console = Console(run_dir / LOG_NAME, quiet)
        self._metrics = MetricsFile(run_dir / METRICS_NAME)
        dropped = self._metrics.truncate_after(resume_nimg)
        if dropped.beyond:
            self.line(f"{METRICS_NAME}: dropped {dropped.beyond} lines beyond "
                      + (f"the checkpoint at {resume_nimg / 1000:g} kimg" if resume_nimg else "the beginning: no checkpoint")
                      + "; they will be recorded again")
        if dropped.damaged:
            self.warn(f"{METRICS_NAME}: {dropped.damaged} damaged lines, which are no records, are moved to "
                      f"{damaged_path(METRICS_NAME)}; their ticks are missing")
        self._wandb = WandbTracker(
            run_dir, wandb_mode, wandb_project, wandb_entity, wandb_name, config, segment,
            say=self.line, warn=self.warn,
        )

    def header(self, facts: list[tuple[str, str]]) -> None:
        """Show (name, value) pairs in two columns."""
        self._console.header(facts)

    def line(self, text: str) -> None:
        """Show a line of information."""
        self._console.line(text)

    def warn(self, text: str) -> None:
        """Show a warning."""
        self._console.warn(text)

    def note(self, text: str) -> None:
        """Write a line to log.txt that somebody else shows."""
        self._console.note(text)

    def alert(self, title: str, text: str) -> None:
        """Show a warning and send it as a W&B alert: for what a person should know of at once, such as divergence."""
        self._console.warn(f"{title}: {text}")
        self._wandb.alert(title, text)

    def tick(self, metrics: dict[str, float], nimg: int) -> None:
        """Record metrics and show the status line.

        Args:
            metrics: flat, name -> number; NaN and infinity are recorded as such
            nimg:    images seen
        """
        self.record(metrics, nimg)
        self._console.status(nimg, self._total_nimg, metrics)

    def record(self, metrics: dict[str, float], nimg: int) -> None:
        """Record metrics without a status line, such as those of an evaluation."""
        stamp = {"nimg": nimg, "kimg": nimg / 1000, "segment": self._segment, "time": time.time()}
        self._write_metrics(lambda: self._metrics.append({**stamp, **metrics}))
        self._wandb.log(metrics, nimg)

    def _write_metrics(self, write: Callable[[], None]) -> None:
        file, failure = self._metrics, None
        try:
            write()
        except OSError as error:
            failure = error
        if file.renewed > self._renewed:
            self._renewed = file.renewed
            self.warn(f"{METRICS_NAME} was deleted or replaced while the run was going on; it begins anew, without what it had")
        if failure and not self._waiting:
            self.warn(f"{METRICS_NAME} cannot be written ({failure.strerror or failure}); training goes on, and up to "
                      f"{MAX_PENDING} records wait in memory until it can")
        if file.lost and not self._lost:
            self.warn(f"{METRICS_NAME}: the first records that wait in memory are given up, {MAX_PENDING} are kept")
        if self._waiting and not failure:
            self.line(f"{METRICS_NAME} can be written again: {self._waiting} records that waited are there now"
                      + (f", {file.lost} are lost" if file.lost else ""))
        self._waiting, self._lost = file.pending, file.lost

    def progress(self, nimg: int) -> None:
        """Move the progress bar; cheap enough for every step."""
        self._console.progress(nimg, self._total_nimg)

    def images(self, name: str, png_path: str | os.PathLike, nimg: int) -> None:
        """Hand a picture to W&B; the file must stay where it is."""
        self._wandb.log_images({name: png_path}, nimg)

    def close(self, exit_code: int) -> None:
        """Finish W&B (bounded, see `WandbTracker.finish`) and close the files."""
        self._wandb.finish(exit_code)
        if self._waiting:
            self._write_metrics(self._metrics.flush)
            if self._waiting:
                self.warn(f"{METRICS_NAME} still cannot be written: {self._waiting + self._lost} records are lost")
        self._metrics.close()
        self._console.close()


class NullMonitor:
    """The monitor of all other ranks: the same methods, doing nothing, so that the loop has no branch on the rank."""

    def _nothing(self, *args, **kwargs) -> None:
        pass

    header = line = warn = note = alert = tick = record = progress = images = close = _nothing
