"""Pictures for people: from network output to bytes, and many pictures in one grid."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image

from stylegan_dist.files import replacing
from stylegan_dist.kinds.base import to_uint8

GAP = 2                # pixels between the images of a grid
SMALLEST_SHOWN = 64    # smaller images are enlarged by an integer factor to at least this many pixels
MOST_PIXELS = 1 << 29  # of a grid; some 6 GB while it is drawn
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def grid_pixels(images: int, side: int) -> int:
    """How many pixels a grid of square images has, gaps left out."""
    return images * max(side, SMALLEST_SHOWN) ** 2


def image_grid(images: torch.Tensor, columns: int) -> Image.Image:
    """Lay images out in rows of `columns`, black between them (transparent for RGBA).

    Args:
        images:  [N, C, H, W] on any device; uint8, or float in [-1, 1]. C = 1 grey, 3 RGB, 4 RGBA.
        columns: images a row; fewer are shown if N is smaller.

    Raises:
        ValueError: no images, another shape or channel count, or no columns.
    """
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[1] not in _MODES:
        raise ValueError(f"images must be [N, C, H, W] with N > 0 and C in {list(_MODES)}, got {list(images.shape)}")
    if columns < 1:
        raise ValueError(f"columns must be positive, got {columns}")
    if images.dtype != torch.uint8:
        images = to_uint8(images)
    images = images.cpu()

    count, channels, height, width = images.shape
    factor = -(-SMALLEST_SHOWN // max(height, width))  # rounded up; 1 for all images that are large enough
    images = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    height, width = height * factor, width * factor

    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = torch.zeros(rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels, dtype=torch.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1)):
        y = index // columns * (height + GAP)
        x = index % columns * (width + GAP)
        sheet[y:y + height, x:x + width] = image
    pixels = sheet.squeeze(2) if channels == 1 else sheet
    return Image.fromarray(pixels.numpy())


def save_grid(path: str | os.PathLike, images: torch.Tensor, columns: int) -> None:
    """Write `image_grid(images, columns)` as PNG, atomically: readers see the whole file or none.

    Raises:
        ValueError: see `image_grid`.
        OSError: the file cannot be written.
    """
    sheet = image_grid(images, columns)
    with replacing(Path(path)) as temporary:
        # Level 1: the other ranks may wait for this file, and level 6 takes twice as long to save a tenth of it.
        sheet.save(temporary, format="PNG", compress_level=1)
