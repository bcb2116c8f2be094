"""Levels: the same image under less and less noise, as the discriminator of GAT sees it.

Hyun et al. 2025, "Scalable GANs with transformers", section 3.2, multi-level noise-perturbed image guidance. The generator has
an output for each level, the coarsest under the most noise. So its early blocks are judged by what they can decide.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CLEANEST, COARSEST = 0.01, 0.125  # the least noise; the share of the image that the most noise leaves, without the former


def amounts(levels: int) -> list[float]:
    """t of each level, coarse to fine: .885, .76, .51, .01 of four. A level is x (1 - t) + t n."""
    return [1 - COARSEST ** (1 - i / max(levels - 1, 1)) + CLEANEST for i in range(levels)]


def noised(images: Tensor, draws: Tensor) -> Tensor:
    """Levels under their noise. It is one chain: the noise of a level is that of the next finer one, less of it, and more.

    With t' and n' of the next finer level, d = (1 - t) / (1 - t'): n = d n' + sqrt(t^2 - d^2 t'^2) e. A level is x (1 - t) + n.
    By itself it has noise of variance t^2, and a coarse level is a finer one, scaled, with more noise.

    Args:
        images: [N, levels, C, H, W], coarse to fine.
        draws: e, of the same shape, standard normal.
    """
    finer, noise = 0.0, torch.zeros_like(images[:, 0])
    found = []
    for i, t in reversed(list(enumerate(amounts(images.shape[1])))):
        d = (1 - t) / (1 - finer)
        noise = noise * d + draws[:, i] * math.sqrt(t**2 - (d * finer) ** 2)
        found.append(images[:, i] * (1 - t) + noise)
        finer = t
    return torch.stack(found[::-1], dim=1)
