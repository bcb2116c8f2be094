"""The averaged generator, the one that is shown, saved and evaluated."""

from __future__ import annotations

import copy

import torch

from stylegan_dist.networks.stylegan2 import Generator


class AveragedGenerator:
    """Exponential moving average of a generator's parameters, with time measured in images.

    Karras et al. 2018, appendix A.2; the ramp-up is of Karras et al. 2020b.

    Args:
        half_life: images after which an old value counts half.
        rampup: the half-life is at most this share of the images seen; 0 for no ramp-up.
    """

    def __init__(self, generator: Generator, half_life: float, rampup: float):
        self.network = copy.deepcopy(generator).eval().requires_grad_(False)
        self.half_life = half_life
        self.rampup = rampup

    def decay(self, nimg: int, batch: int) -> float:
        """Weight of the old average when `batch` images follow the first `nimg`; 0 copies."""
        half_life = min(self.half_life, nimg * self.rampup) if self.rampup else self.half_life
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, generator: Generator, nimg: int, batch: int) -> None:
        """Move towards the generator; buffers (such as the mean of w) are copied."""
        old: list[torch.Tensor] = list(self.network.parameters())
        new: list[torch.Tensor] = list(generator.parameters())
        torch._foreach_lerp_(old, new, 1 - self.decay(nimg, batch))
        for average, current in zip(self.network.buffers(), generator.buffers(), strict=True):
            average.copy_(current)
