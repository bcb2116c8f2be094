"""The monitor of a run: what the training loop talks to, on rank 0."""

from __future__ import annotations

import os
import time
from pathlib import Path

from stylegan_dist.monitor.console import Console
from stylegan_dist.monitor.jsonl import MetricsFile
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
        self._metrics_warned = False
        self._console = Console(run_dir / LOG_NAME, quiet)
        self._metrics = MetricsFile(run_dir / METRICS_NAME)
        if dropped := self._metrics.truncate_after(resume_nimg):
            self.line(f"{METRICS_NAME}: dropped {dropped} lines beyond the checkpoint at {resume_nimg / 1000:g} kimg")
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
        try:
            self._metrics.append({**stamp, **metrics})
        except OSError as error:
            if not self._metrics_warned:
                self._metrics_warned = True
                self.warn(f"{METRICS_NAME} cannot be written ({error}); training goes on, records are missing")
        self._wandb.log(metrics, nimg)

    def progress(self, nimg: int) -> None:
        """Move the progress bar; cheap enough for every step."""
        self._console.progress(nimg, self._total_nimg)

    def images(self, name: str, png_path: str | os.PathLike, nimg: int) -> None:
        """Hand a picture to W&B; the file must stay where it is."""
        self._wandb.log_images({name: png_path}, nimg)

    def close(self, exit_code: int) -> None:
        """Finish W&B (bounded, see `WandbTracker.finish`) and close the files."""
        self._wandb.finish(exit_code)
        self._metrics.close()
        self._console.close()


class NullMonitor:
    """The monitor of all other ranks: the same methods, doing nothing, so that the loop has no branch on the rank."""

    def _nothing(self, *args, **kwargs) -> None:
        pass

    header = line = warn = alert = tick = record = progress = images = close = _nothing
