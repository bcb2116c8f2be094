"""TensorBoard files as a copy of the record of a run: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from stylegan_dist.errors import InputError
from stylegan_dist.monitor.histograms import Histogram
from stylegan_dist.monitor.history import SOUND_SUFFIX
from stylegan_dist.monitor.tracker import Segment, Tracker
from stylegan_dist.scores_file import Evaluation, Score

FOLDER = "tensorboard"
SHOWN = (".png", ".gif")  # files that TensorBoard's page of images shows


def check_tensorboard() -> None:
    """Raises InputError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("monitor.tensorboard=true needs TensorBoard, which is not installed: pip install "
                         '"stylegan-dist[tensorboard]", or set monitor.tensorboard=false')


class TensorboardTracker(Tracker):
    """Writes RUN_DIR/tensorboard. Every start adds a file.

    A file of a run that is continued, or goes back, tells TensorBoard to hide what was recorded beyond. A folder without files
    is given the whole history of the run.
    """

    TITLE = "TensorBoard"
    finish_timeout, early_timeout = 10.0, 2.0  # only a disk can be slow

    def __init__(self, segment: Segment, shown: Mapping[str, Any], say: Callable[[str], None], warn: Callable[[str], None]):
        super().__init__(segment, FOLDER, shown, say, warn)
        self._writer: Any = None
        self._open()

    def _start(self) -> None:
        self._claim()
        if any(self._folder.glob("events.out.tfevents.*")):
            self._hide(self._nimg)
            self._take_scores()
            self._take_files()
        else:
            self._hide(None)
            self._results.forget()
            self._give_history(-1)
        self._writer.add_text("config", f"```\n{yaml.safe_dump(self._about(), sort_keys=False)}```", self._nimg)
        self._writer.flush()

    def _hide(self, beyond: int | None) -> None:
        """Go on with a new file, which hides what has more than `beyond` images."""
        from torch.utils.tensorboard import SummaryWriter  # here: it takes a second

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=None if beyond is None else beyond + 1,
                                     filename_suffix=f".{self._segment}")
        if beyond is not None:
            self._row_at = beyond
            self._results.forget(beyond)

    def _end(self, exit_code: int) -> None:
        self._writer.close()

    def _write_row(self, metrics: Mapping[str, float], nimg: int, segment: int, when: float | None) -> None:
        for name, value in {**metrics, "run/segment": segment}.items():
            self._writer.add_scalar(name, value, nimg, walltime=when)
        if when is None:
            self._writer.flush()

    def _write_picture(self, name: str, path: Path, nimg: int, clip: bool) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if path.suffix == SOUND_SUFFIX:
            with wave.open(str(path)) as file:
                rate, channels, length = file.getframerate(), file.getnchannels(), file.getnframes()
            sound = Summary.Audio(sample_rate=rate, num_channels=channels, length_frames=length, content_type="audio/wav",
                                  encoded_audio_string=path.read_bytes())
            self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, audio=sound)]), nimg)
        if path.suffix in SHOWN:
            with Image.open(path) as image:
                width, height = image.size
            # The file as it is: `add_image` would decode it and encode it again.
            picture = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
            self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=picture)]), nimg)

    def _write_histogram(self, name: str, histogram: Histogram, nimg: int) -> None:
        counts, edges = histogram.counts, histogram.edges
        middles = (edges[:-1] + edges[1:]) / 2
        self._writer.add_histogram_raw(name, histogram.low, histogram.high, sum(counts), float((middles * counts).sum()),
                                       float((middles**2 * counts).sum()), edges[1:].tolist(), counts, nimg)

    def _write_score(self, one: Evaluation, scores: Mapping[str, Score]) -> None:
        for name, score in scores.items():
            self._writer.add_scalar(f"eval/{name}", score.value, one.nimg)
            if score.error is not None:
                self._writer.add_scalar(f"eval/{name}_error", score.error, one.nimg)

    def _write_alert(self, title: str, text: str) -> None:
        self._writer.add_text("alerts", f"{title}: {text}", self._nimg)

    def _go_back(self, nimg: int) -> None:
        self._hide(nimg)
