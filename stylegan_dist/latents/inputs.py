"""Images and masks from files, in the form that a generator makes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular
from stylegan_dist.kinds import Image
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.kinds.pixels import Form, convert, measure
from stylegan_dist.latents.trained import Trained
from stylegan_dist.records import shorten

MOST_BYTES = 512 << 20     # of an image file
MOST_IMAGES = 10_000
_NUMBER_BITS = 43          # of an image's number, which leaves 20 of an address to steps
STEP_BITS = 20


class Target(NamedTuple):
    """An image whose latent is wanted."""

    path: Path
    name: str        # of its files, without ending; no two are the same
    pixels: Tensor   # uint8 [C, R, R]
    number: int      # from the pixels, the address of its draws: neither its file nor other images matter


def read_images(paths: Sequence[str | os.PathLike], trained: Trained, taken: Sequence[str] = ()) -> list[Target]:
    """Images in the form of the run: converted, cropped and resized as `pack` does by default.

    Args:
        paths: of files, or of folders, of which the image files are taken in the order of their names.
        taken: names that others have.
    Raises:
        InputError: a file is missing or no image; a folder has none; there are too many; the run makes no images.
    """
    if not isinstance(trained.kind, Image):
        raise InputError(f"{trained.run_dir} makes {trained.kind.noun}, not images: only runs of images can be projected into")
    form = Form(trained.shape.resolution, trained.shape.channels)
    names, targets = set(taken), []
    for path in _files(paths):
        image = convert_file(path, form)
        number = 1
        while (name := path.stem + (f"-{number}" if number > 1 else "")) in names:
            number += 1
        names.add(name)
        digest = hashlib.sha256(image.tobytes()).digest()
        pixels = torch.from_numpy(image).reshape(form.resolution, form.resolution, form.channels).permute(2, 0, 1)
        targets.append(Target(path, name, pixels, int.from_bytes(digest[:8], "big") >> (64 - _NUMBER_BITS)))
    return targets


def convert_file(path: Path, form: Form) -> np.ndarray:
    """The pixels of an image file in a form, uint8 [H, W] or [H, W, C]. Raises InputError where it is no image."""
    try:
        return np.array(convert(_content(path), form).image)
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}") from None


def read_mask(path: str | os.PathLike, targets: Sequence[Target], resolution: int) -> Tensor:
    """What is missing in all images: bool [1, 1, R, R] from a picture that is white there.

    A square mask is resized. One of the proportions of the image files is cropped and resized as these are.

    Raises:
        InputError: it is no image; it has other proportions; all or nothing is missing.
    """
    path = Path(path)
    values = convert_file(path, Form(resolution, 1, filter="box"))
    width, height = _size(path)
    for target in targets if width != height else ():
        other = _size(target.path)
        if not any(abs(a * height - b * width) <= max(a, b, width, height) for a, b in (other, other[::-1])):
            raise InputError(f"the mask {path} has {width} x {height} pixels, {target.path} {other[0]} x {other[1]}: make the "
                             f"mask of the size of the image, or {resolution} x {resolution} pixels")
    return _checked(torch.from_numpy(values >= 128), f"the mask {path}")


def box_mask(text: str, resolution: int) -> Tensor:
    """As `read_mask`, of a rectangle "x,y,width,height" in pixels of the run's resolution.

    Raises:
        InputError: it is no such text, or lies outside of the image.
    """
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() and len(part) < 9 for part in parts):
        raise InputError(f"--mask-box {shorten(text)} is no rectangle: write x,y,width,height in pixels, for example 8,8,16,16")
    x, y, width, height = map(int, parts)
    if not (width and height and x + width <= resolution and y + height <= resolution):
        raise InputError(f"--mask-box {shorten(text)} must lie inside the {resolution} x {resolution} pixels of the run")
    missing = torch.zeros(resolution, resolution, dtype=torch.bool)
    missing[y:y + height, x:x + width] = True
    return _checked(missing, f"--mask-box {text}")


def _checked(missing: Tensor, what: str) -> Tensor:
    share = float(missing.float().mean())
    if share in (0, 1):
        raise InputError(f"{what} leaves {'nothing known' if share else 'nothing to complete'}: white is what is missing")
    return missing[None, None]


def _files(paths: Sequence[str | os.PathLike]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in ImageOptions.endings and file.is_file())
            if not inside:
                raise InputError(f"there are no images in {path} (endings: {' '.join(ImageOptions.endings)})")
            found += inside
        else:
            found.append(path)
    if len(found) > MOST_IMAGES:
        raise InputError(f"{len(found)} images are more than {MOST_IMAGES}: project them in several parts")
    return found


def _content(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES} bytes, which no image here needs")
    return content


def _size(path: Path) -> tuple[int, int]:
    width, height, _ = measure(_content(path))
    return width, height
