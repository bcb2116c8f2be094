"""The monitor of a run, on rank 0. The training loop reports to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.monitor.console import Console, status_line
from stylegan_dist.monitor.jsonl import MetricsFile
from stylegan_dist.monitor.wandb_tracker import WandbTracker

METRICS_NAME = "metrics.jsonl"
LOG_NAME = "log.txt"


class Monitor(Console):
    """A console that also records metrics and pictures, in metrics.jsonl and in W&B. Failures of any of them are warnings.

    Args:
        run_dir:    folder of the run; must exist
        segment:    restarts so far; 0 for the first start
        nimg:       images seen at the checkpoint this process continues from; records beyond it are dropped
        total_nimg: images to see in the whole run, for percentage and ETA
        config, shown: see `WandbTracker`

    Raises:
        OSError: metrics.jsonl cannot be opened or cut back to the checkpoint: the record of the run would be wrong.
        InputError: metrics.jsonl is no file.
    """

    def __init__(self, run_dir: Path, segment: int, nimg: int, total_nimg: int, config: MonitorConfig, shown: dict[str, Any]):
        super().__init__(run_dir / LOG_NAME, total_nimg)
        self._metrics = MetricsFile(run_dir / METRICS_NAME, segment, nimg, self.line, self.warn)
        self._wandb = WandbTracker(run_dir, segment, config, shown, self.line, self.warn)

    def alert(self, title: str, text: str) -> None:
        """Show a warning and send it as a W&B alert: for what a person should know of at once, such as divergence."""
        self.warn(f"{title}: {text}")
        self._wandb.alert(title, text)

    def tick(self, metrics: dict[str, float], nimg: int) -> None:
        """Record metrics (flat, name -> number) at `nimg` images, and show the status line."""
        self._metrics.append(nimg, metrics)
        self._wandb.log(metrics, nimg)
        self.line(status_line(nimg, self._total_nimg, metrics))

    def image(self, name: str, png_path: str | os.PathLike, nimg: int) -> None:
        """Hand a picture to W&B; the file must stay where it is."""
        self._wandb.log_image(name, png_path, nimg)

    def finish(self, exit_code: int) -> None:
        """Finish W&B (bounded, see `WandbTracker.finish`) and close the files."""
        self._wandb.finish(exit_code)
        self._metrics.close()
        self.close()


class NullMonitor:
    """The monitor of all other ranks: the same methods, doing nothing, so that the loop has no branch on the rank."""

    def _nothing(self, *args, **kwargs) -> None:
        pass

    header = line = warn = note = alert = tick = progress = image = finish = close = _nothing
