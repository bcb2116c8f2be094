"""The monitor of a run, on rank 0. The training loop reports to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.errors import InputError
from stylegan_dist.monitor.console import Console, status_line
from stylegan_dist.monitor.histograms import histogram_of, to_json
from stylegan_dist.monitor.history import HISTOGRAMS_NAME, METRICS_NAME, Results
from stylegan_dist.monitor.jsonl import MetricsFile
from stylegan_dist.monitor.tensorboard_tracker import FOLDER as TENSORBOARD_FOLDER
from stylegan_dist.monitor.tensorboard_tracker import TensorboardTracker
from stylegan_dist.monitor.tracker import BOOK_NAME, Segment, Tracker
from stylegan_dist.monitor.wandb_tracker import FOLDER as WANDB_FOLDER
from stylegan_dist.monitor.wandb_tracker import ID_NAME, WandbTracker

LOG_NAME = "log.txt"


class Monitor(Console):
    """A console that also records metrics and pictures, in the folder of the run, in W&B and in TensorBoard.

    Failures of any of them are warnings.

    Args:
        segment:    of the run, which this process trains; records beyond its beginning are dropped
        total_nimg: images to see in the whole run, for percentage and ETA
        config:     which trackers are used, and how; see `WandbTracker`
        shown:      see `Tracker`

    Raises:
        OSError: metrics.jsonl cannot be opened or cut back to the checkpoint: the record of the run would be wrong.
        InputError: metrics.jsonl is no file.
    """

    def __init__(self, segment: Segment, total_nimg: int, config: MonitorConfig, shown: dict[str, Any]):
        run_dir, number, nimg = segment.run_dir, segment.number, segment.nimg
        super().__init__(run_dir / LOG_NAME, total_nimg)
        self._metrics = MetricsFile(run_dir / METRICS_NAME, number, nimg, self.line, self.warn)
        # Opened when there are histograms: the file is cut back to the checkpoint then.
        self._histograms: MetricsFile | None = None
        self._open_histograms = lambda: MetricsFile(run_dir / HISTOGRAMS_NAME, number, nimg, self.line, self.warn)
        if (run_dir / HISTOGRAMS_NAME).exists():
            self._histograms = self._open_histograms()
        self._trackers: list[Tracker] = [WandbTracker(segment, config, shown, self.line, self.warn)]
        if config.tensorboard:
            self._trackers.append(TensorboardTracker(segment, shown, self.line, self.warn))

    def alert(self, title: str, text: str) -> None:
        """Show a warning and send it as a W&B alert: for what a person should know of at once, such as divergence."""
        self.warn(f"{title}: {text}")
        for tracker in self._trackers:
            tracker.alert(title, text)

    def tick(self, metrics: dict[str, float], nimg: int) -> None:
        """Record metrics (flat, name -> number) at `nimg` images, and show the status line."""
        self._metrics.append(nimg, metrics)
        for tracker in self._trackers:
            tracker.log(metrics, nimg)
        self.line(status_line(nimg, self._total_nimg, metrics))

    def go_back(self, nimg: int) -> None:
        """The run goes back to `nimg` images: what is recorded beyond is put aside."""
        try:
            for file in (self._metrics, self._histograms):
                if file is not None:
                    file.go_back(nimg)
        except OSError as error:
            raise InputError(f"{METRICS_NAME} cannot be cut back to {nimg / 1000:g} kimg ({error.strerror or error}): see to "
                             "its disk and run the same command again") from None
        for tracker in self._trackers:
            tracker.go_back(nimg)

    def image(self, name: str, path: str | os.PathLike, nimg: int) -> None:
        """Hand a picture, or a clip, to the trackers; the file must stay where it is. All of them show PNG and GIF."""
        for tracker in self._trackers:
            tracker.image(name, path, nimg)

    def histograms(self, values: Mapping[str, torch.Tensor], nimg: int) -> None:
        """Record histograms of tensors by name, in histograms.jsonl and in the trackers. Waits for the device."""
        found = {name: histogram for name, tensor in values.items() if (histogram := histogram_of(tensor)) is not None}
        if not found:
            return
        try:
            self._histograms = self._histograms or self._open_histograms()
            self._histograms.append(nimg, {name: to_json(histogram) for name, histogram in found.items()})
        except (OSError, InputError) as error:
            self.warn(f"{HISTOGRAMS_NAME} cannot be opened ({error}); training goes on without it")
        for tracker in self._trackers:
            for name, histogram in found.items():
                tracker.histogram(name, histogram, nimg)

    def checkpoint(self, folder: Path, nimg: int) -> None:
        """Tell the trackers where a whole checkpoint is."""
        for tracker in self._trackers:
            tracker.checkpoint(folder, nimg)

    def finish(self, exit_code: int) -> None:
        """Finish the trackers (bounded, see `Tracker.finish`) and close the files."""
        for tracker in reversed(self._trackers):  # W&B may take long
            tracker.finish(exit_code)
        for file in (self._metrics, self._histograms):
            if file is not None:
                file.close()
        self.close()


def give_results(segment: Segment, config: MonitorConfig, shown: Mapping[str, Any], exit_code: int, say: Callable[[str], None],
                 warn: Callable[[str], None]) -> None:
    """Give the trackers of a run what evaluators have left, while no training does that. One process may write to a W&B run.

    Trackers that the run did not have, or that have everything, are left alone.

    Args:
        segment:   of the run, with the images that it has seen in the end
        exit_code: how it has ended, which W&B shows
        others:    see `Tracker`
    """
    trackers: list[Tracker] = []
    run_dir, nimg = segment.run_dir, segment.nimg
    if (run_dir / ID_NAME).exists() and Results(run_dir, run_dir / WANDB_FOLDER / BOOK_NAME).has_news(nimg):
        trackers.append(WandbTracker(segment, config, shown, say, warn))
    if config.tensorboard and Results(run_dir, run_dir / TENSORBOARD_FOLDER / BOOK_NAME).has_news(nimg):
        trackers.append(TensorboardTracker(segment, shown, say, warn))
    for tracker in trackers:
        tracker.early_timeout = tracker.finish_timeout  # nobody is in a hurry, however the training has ended
        tracker.finish(exit_code)


class NullMonitor:
    """The monitor of all other ranks: the same methods, doing nothing, so that the loop has no branch on the rank."""

    def _nothing(self, *args, **kwargs) -> None:
        pass

    header = line = warn = note = alert = tick = go_back = progress = _nothing
    image = histograms = checkpoint = finish = close = _nothing
