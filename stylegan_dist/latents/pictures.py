"""Pictures of projections for people."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stylegan_dist.files import replacing
from stylegan_dist.kinds.pixels import encode
from stylegan_dist.monitor.images import save_grid

STRIP = "strip"          # name of the picture of all
MOST_ROWS = 64           # of it
_GREY = 128


def save_picture(path: Path, pixels: Tensor) -> None:
    """Write an image, uint8 [C, H, W], as PNG, whole or not at all. Raises OSError."""
    array = pixels.permute(1, 2, 0).numpy()
    content = encode(Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array), "png", 0)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def save_strip(path: Path, wanted: Tensor, made: Tensor, missing: Tensor | None) -> None:
    """Write a row for each image: original, projection, difference; or with a mask what is known, completed, original.

    Args:
        wanted, made: uint8 [N, C, H, W].
        missing: bool [1, 1, H, W], or None.
    Raises:
        OSError
    """
    wanted, made = wanted[:MOST_ROWS], made[:MOST_ROWS]
    if missing is None:
        difference = (wanted.int() - made.int()).abs().to(torch.uint8)
        if difference.shape[1] == 4:
            difference[:, 3] = 255
        columns, captions = [wanted, made, difference], ["original", "projection", "difference"]
    else:
        known = torch.where(missing, torch.full_like(wanted, _GREY), wanted)
        columns, captions = [known, made, wanted], ["known", "completed", "original"]
    images = torch.stack(columns, 1).flatten(0, 1)
    save_grid(path, images, len(columns), captions + [""] * (len(images) - len(captions)))
