"""DiffAugment (Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training"): colour, translation, cutout.

All of it takes place for every image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_dist.augment.draws import Draws
from stylegan_dist.augment.linear import Linear

UNIFORMS = ("brightness", "saturation", "contrast", "shift.x", "shift.y", "cutout.x", "cutout.y")
SHIFT = 0.125  # of the size, at most
CUTOUT = 0.5   # side of the square, of that of the image


def diff_augmented(x: Tensor, draws: Draws, colors: bool = True) -> Tensor:
    """Images [N, C, W, W]; with or without the colours."""
    return _cut_out(Shifted(*_shifts(draws, x.shape[3]))(_recolored(x, draws) if colors else x), draws)


def _recolored(x: Tensor, draws: Draws) -> Tensor:
    brightness, saturation, contrast = (draws.uniform(name, *span)[:, None, None, None] for name, span in (
        ("brightness", (-0.5, 0.5)), ("saturation", (0.0, 2.0)), ("contrast", (0.5, 1.5))))
    x = x + brightness
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * saturation + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean


def _shifts(draws: Draws, size: int) -> tuple[Tensor, Tensor]:
    """Of every image, whole pixels to the right and down: int64 [N] each."""
    most = int(size * SHIFT + 0.5)
    right, down = (draws.integer(name, 2 * most + 1).long() - most for name in ("shift.x", "shift.y"))
    return right, down


class Shifted(Linear):
    """Images moved by whole pixels, with zeros where nothing was.

    Args:
        right, down: int64 [N].
    """

    def __init__(self, right: Tensor, down: Tensor):
        self.right, self.down = right, down

    def forward(self, x: Tensor) -> Tensor:
        return _moved(_moved(x, self.right).mT, self.down).mT.contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        return _moved(_moved(y, -self.right).mT, -self.down).mT.contiguous()


def _moved(x: Tensor, by: Tensor) -> Tensor:
    """Rows moved towards their end."""
    source = torch.arange(x.shape[3], device=x.device) - by[:, None]
    inside = (source >= 0) & (source < x.shape[3])
    where = source.clamp(0, x.shape[3] - 1)[:, None, None].expand_as(x)
    return x.gather(3, where) * inside[:, None, None].to(x.dtype)


def _cut_out(x: Tensor, draws: Draws) -> Tensor:
    size = x.shape[3]
    side = int(size * CUTOUT + 0.5)
    line = torch.arange(size, device=x.device)
    hidden = []
    for name in ("cutout.y", "cutout.x"):
        first = draws.integer(name, size + 1 - side % 2).long()[:, None] - side // 2
        hidden.append((line >= first) & (line < first + side))
    kept = ~(hidden[0][:, :, None] & hidden[1][:, None])
    return x * kept[:, None].to(x.dtype)
