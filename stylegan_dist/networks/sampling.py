"""Images from a generator, one latent a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_dist.families.stylegan2.networks import Generator


@torch.no_grad()
def sample_images(generator: Generator, z: Tensor, labels: Tensor | None, truncation: float = 1.0, batch: int = 16,
                  noise: str = "const") -> Tensor:
    """Images with the fixed noise maps, or without noise.

    Args:
        z: [N, z_dim].
        labels: int64 [N], or None for an unconditional generator.
        truncation: psi, 1 for none.
        batch: images that are computed at once; another number gives the same images up to rounding.
        noise: "const" or "none".
    Returns: float [N, C, R, R], nominally in [-1, 1], on the CPU.
    """
    maps = generator.synthesis.constant_noise() if noise == "const" else None
    images = []
    for start in range(0, len(z), batch):
        part = slice(start, start + batch)
        images.append(generator(z[part], None if labels is None else labels[part], maps, truncation).cpu())
    return torch.cat(images)
