"""The interface of generators, and how samples are drawn with it."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SampleShape:
    """What networks make and judge: samples [N, channels, resolution, resolution] of `num_classes` classes, 0 for none."""

    resolution: int
    channels: int
    num_classes: int = 0


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        truncation: psi, 1 for none.
        noise: of layers: "const", the fixed maps, or "none".
        batch: samples computed at once; another number gives the same samples up to rounding.
    """

    truncation: float = 1.0
    noise: str = "const"
    batch: int = 16


class Generator(nn.Module, abc.ABC):
    """Latents and labels to samples.

    Attributes:
        num_classes: 0 for an unconditional generator.
    """

    num_classes: int

    @abc.abstractmethod
    def sample(self, seed: int, purpose: str, index: Tensor, labels: Tensor | None, sampling: Sampling) -> Tensor:
        """Samples [N, C, R, R], nominally in [-1, 1]; all that is random is a function of (seed, purpose, index).

        Args:
            index: int64 [N].
            labels: int64 [N], or None for an unconditional generator.
        """


@torch.no_grad()
def draw_samples(generator: Generator, seed: int, purpose: str, index: Tensor, labels: Tensor | None = None,
                 sampling: Sampling = Sampling()) -> Tensor:
    """`Generator.sample` in parts of `sampling.batch`; float, on the CPU."""
    parts = []
    for start in range(0, len(index), sampling.batch):
        part = slice(start, start + sampling.batch)
        parts.append(generator.sample(seed, purpose, index[part], None if labels is None else labels[part], sampling).cpu())
    return torch.cat(parts)
