"""Pictures for people: from network output to bytes, and many pictures in one grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, features
from PIL.PngImagePlugin import PngInfo

from stylegan_dist.files import replacing
from stylegan_dist.kinds.base import to_uint8

LONGEST_CAPTION = 60   # characters
GAP = 2                # pixels between the images of a grid
SMALLEST_SHOWN = 64    # smaller images are enlarged by an integer factor to at least this many pixels
MOST_PIXELS = 1 << 29  # of a grid; some 6 GB while it is drawn
ABOUT = "Description"  # keyword of the PNG text that says what a picture shows
FRAME_MS = 70          # of a clip
PALETTE_FRAMES = 12    # of a clip, from which the colours of all are chosen
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def grid_pixels(images: int, side: int) -> int:
    """How many pixels a grid of square images has, gaps left out."""
    return images * max(side, SMALLEST_SHOWN) ** 2


def image_grid(images: torch.Tensor, columns: int, captions: Sequence[str] = ()) -> Image.Image:
    """Lay images out in rows of `columns`, black between them (transparent for RGBA).

    Args:
        images:   [N, C, H, W] on any device; uint8, or float in [-1, 1]. C = 1 grey, 3 RGB, 4 RGBA.
        columns:  images a row; fewer are shown if N is smaller.
        captions: a line above each image, "" for none; a row without any takes no more space.

    Raises:
        ValueError: no images, another shape or channel count, no columns, or captions that are not as many.
    """
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[1] not in _MODES:
        raise ValueError(f"images must be [N, C, H, W] with N > 0 and C in {list(_MODES)}, got {list(images.shape)}")
    if columns < 1:
        raise ValueError(f"columns must be positive, got {columns}")
    if captions and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    if images.dtype != torch.uint8:
        images = to_uint8(images)
    images = images.cpu()

    count, channels, height, width = images.shape
    factor = -(-SMALLEST_SHOWN // max(height, width))  # rounded up; 1 for all images that are large enough
    images = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    height, width = height * factor, width * factor

    columns = min(columns, count)
    rows = -(-count // columns)
    letters = max(10, width // 14)  # pixels
    bands = [letters * 3 // 2 * any(captions[row * columns:(row + 1) * columns]) for row in range(rows)]
    tops = [row * (height + GAP) + sum(bands[:row + 1]) for row in range(rows)]
    sheet = torch.zeros(tops[-1] + height, columns * (width + GAP) - GAP, channels, dtype=torch.uint8)
    if channels == 4:
        for top, band in zip(tops, bands, strict=True):
            sheet[top - band:top, :, 3] = 255  # black, on which the words are read on any ground
    for index, image in enumerate(images.permute(0, 2, 3, 1)):
        y, x = tops[index // columns], index % columns * (width + GAP)
        sheet[y:y + height, x:x + width] = image
    picture = Image.fromarray((sheet.squeeze(2) if channels == 1 else sheet).numpy())
    if any(bands):
        pen = ImageDraw.Draw(picture)
        font = ImageFont.load_default(letters if features.check("freetype2") else None)
        for index, text in enumerate(captions):
            place = index % columns * (width + GAP) + letters // 4, tops[index // columns] - bands[index // columns]
            line = " ".join(text.encode("utf-8", "replace").decode().split())  # it may hold the name of a class
            pen.text(place, line[:LONGEST_CAPTION], fill="white", font=font)
    return picture


def save_grid(path: str | os.PathLike, images: torch.Tensor, columns: int, captions: Sequence[str] = (),
              about: str = "") -> None:
    """Write `image_grid(images, columns, captions)` as PNG, atomically: readers see the whole file or none.

    Args:
        about: what it shows, for people; kept in the file.
    Raises:
        ValueError: see `image_grid`.
        OSError: the file cannot be written.
    """
    sheet = image_grid(images, columns, captions)
    text = PngInfo()
    if about:
        text.add_text(ABOUT, about)
    with replacing(Path(path)) as temporary:
        # Level 1: the other ranks may wait for this file, and level 6 takes twice as long to save a tenth of it.
        sheet.save(temporary, format="PNG", compress_level=1, pnginfo=text)


def save_clip(path: str | os.PathLike, frames: torch.Tensor, columns: int, frame_ms: int = FRAME_MS) -> None:
    """Write an endless loop of `image_grid(frame, columns)` as GIF, atomically.

    A GIF has 256 colours. They are chosen once for all frames, so that none flickers. Grey stays as it is.

    Args:
        frames: [F, N, C, H, W], as of `image_grid`. RGBA is shown on white.
        frame_ms: how long each is shown; GIF counts in 10 ms.
    Raises:
        ValueError: see `image_grid`.
        OSError: the file cannot be written.
    """
    sheets = [image_grid(frame, columns) for frame in frames]
    if sheets[0].mode == "RGBA":
        white = Image.new("RGBA", sheets[0].size, "white")
        sheets = [Image.alpha_composite(white, sheet).convert("RGB") for sheet in sheets]
    if sheets[0].mode == "RGB":
        some = sheets[::-(-len(sheets) // PALETTE_FRAMES)]
        width, height = sheets[0].size
        together = Image.new("RGB", (width, height * len(some)))
        for i, sheet in enumerate(some):
            together.paste(sheet, (0, i * height))
        palette = together.quantize(256)
        sheets = [sheet.quantize(palette=palette) for sheet in sheets]
    with replacing(Path(path)) as temporary:
        sheets[0].save(temporary, format="GIF", save_all=True, append_images=sheets[1:], duration=frame_ms, loop=0,
                       optimize=False)
