"""Scores of the motion of clips, from pixels alone: how much frames differ after so many steps, and how alike they stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.kinds.scores import Measured, SampleMetric

MOST_LAGS = 32
_LEAST = 1e-4      # of a difference, where black to white is 2: what does not move at all is very unlike what moves
_TINY = 1e-12


class Motion(SampleMetric):
    """Compared are, at each lag l of 1, 2, ... frames, the mean of |x(t + l) - x(t)| over pixels and times, D(l), and the
    autocorrelation R(l) = 1 - E (x(t + l) - x(t))^2 / (2 Var x), with the variance of pixels over the time of a clip.

    Args:
        frames: of a clip.
        channels: of a frame.
    """

    about: ClassVar[str] = "how clips move: differences and autocorrelation of frames over lags"
    scores: ClassVar[tuple[str, ...]] = ("motion_differences", "motion_correlation", "motion_speed")
    most_real: ClassVar[int] = 2048

    def __init__(self, frames: int, channels: int):
        self.channels, self.lags = channels, min(frames - 1, MOST_LAGS)

    @property
    def common(self) -> tuple[int, int]:
        return self.channels, self.lags

    def width(self, resolution: int, channels: int) -> int:
        return 2 * self.lags + 2

    def rows(self, values: Tensor) -> Tensor:
        """D(l) and the mean squares of all lags, the variance over time, and the mean of |x(last) - x(first)|."""
        clips = values.float().unflatten(1, (-1, self.channels))
        columns = []
        for power in (1, 2):
            for lag in range(1, self.lags + 1):
                columns.append((clips[:, lag:] - clips[:, :-lag]).abs().pow(power).mean((1, 2, 3, 4)))
        columns.append(clips.var(1, correction=0).mean((1, 2, 3)))
        columns.append((clips[:, -1] - clips[:, 0]).abs().mean((1, 2, 3)))
        return torch.stack(columns, 1)

    def measure(self, real: Tensor, generated: Tensor) -> Mapping[str, Measured]:
        if len(real) < 2 or not len(generated):
            raise InputError("scores of motion need two real clips and a generated one: use a larger --count")
        found = self._compare(real, generated)
        floors = self._compare(real[::2], real[1::2])
        return {name: Measured(value, floor=floors[name]) for name, value in found.items()}

    def _compare(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        ours, theirs = (self._curves(rows.double()) for rows in (generated, real))
        ratio = (ours[0] + _LEAST).log() - (theirs[0] + _LEAST).log()
        return {"motion_differences": float(ratio.abs().mean()),
                "motion_correlation": float((ours[1] - theirs[1]).abs().mean()),
                "motion_speed": float(ratio[0].abs().exp())}

    def _curves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """D and R of the lags. A clip that does not move is wholly correlated."""
        mean = rows.mean(0)
        return mean[:self.lags], 1 - mean[self.lags:2 * self.lags] / (2 * mean[-2] + _TINY)


class LoopingMotion(Motion):
    """With the jump from the last frame to the first one, in steps between frames: 1 for clips that loop."""

    scores: ClassVar[tuple[str, ...]] = (*Motion.scores, "loop_jump")

    def measure(self, real: Tensor, generated: Tensor) -> Mapping[str, Measured]:
        jump, floor = (float(rows[:, -1].double().mean() / (rows[:, 0].double().mean() + _LEAST)) for rows in (generated, real))
        return {**super().measure(real, generated), "loop_jump": Measured(jump, floor=floor)}
