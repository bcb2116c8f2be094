"""What the shards of other tools hold, and what kind of set that is.

Size and mode of an image are read from its header, at the speed of a tar header: Pillow would take ten times as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from stylegan_dist.errors import InputError
from stylegan_dist.kinds.array import MAX_ARRAY_BYTES, Array, Normalisation, checked, decode_array
from stylegan_dist.kinds.base import RESOLUTIONS, Kind, option
from stylegan_dist.kinds.npy import array_names, read_array
from stylegan_dist.kinds.pixels import MODES, measure
from stylegan_dist.kinds.values import Values, added
from stylegan_dist.making.tar import TarError

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_MODES = {(8, 0): "L", (16, 0): "I;16", (8, 2): "RGB", (8, 6): "RGBA", (8, 3): "P"}  # bits and colour type
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # number of components
_JPEG_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # markers
_FEW_BYTES = 64
# Channels that fit an image of a mode (Pillow's name) best; what has others is converted.
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "LA": 4, "PA": 4, "RGBA": 4}
_LISTED = 20  # forms of images, in the index


def look(content, offset: int, size: int) -> tuple[int, int, str]:
    """Width, height and mode (Pillow's name) of an image.

    Args:
        content: bytes, or a memory map, that hold the image.
        offset, size: where it lies, and how many bytes it has.

    Raises:
        ValueError: with the reason, when the bytes are not an image.
    """
    start = content[offset:offset + min(size, _FEW_BYTES)]
    found = None
    if start.startswith(_PNG_START) and len(start) > 25:
        if mode := _PNG_MODES.get((start[24], start[25])):
            found = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big"), mode
    elif start[:3] == b"\xff\xd8\xff":
        found = _look_at_jpeg(content, offset, offset + size)
    elif start[8:16] == b"WEBPVP8 " and len(start) > 30 and start[23:26] == b"\x9d\x01\x2a":
        found = int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF, "RGB"
    elif start[8:16] == b"WEBPVP8L" and len(start) > 25 and start[20] == 0x2F:
        bits = int.from_bytes(start[21:25], "little")
        found = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "RGBA" if bits >> 28 & 1 else "RGB"
    if found is None or not found[0] or not found[1]:
        found = measure(content[offset:offset + size])
    return found


def _look_at_jpeg(content, offset: int, end: int) -> tuple[int, int, str] | None:
    """From the header of the frame; None where it is not found."""
    at = offset + 2
    while at + 10 <= end and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in _JPEG_FRAMES:
            mode = _JPEG_MODES.get(content[at + 9])
            if content[at + 4] != 8 or mode is None:
                return None
            return content[at + 7] << 8 | content[at + 8], content[at + 5] << 8 | content[at + 6], mode
        length = content[at + 2] << 8 | content[at + 3]
        if length < 2 or marker < 0xC0 or marker == 0xDA:
            return None
        at += 2 + length
    return None


class ImageSurvey(NamedTuple):
    """Of the images of a shard."""

    forms: Counter   # how many have each width, height and mode; None for those that are no images


class ArraySurvey(NamedTuple):
    """Of the arrays of a shard."""

    form: tuple[int, int, int, str, str | None]   # width, height, channels, dtype and key of the first, which all must have
    values: Values | None                         # of those that training can read
    misfits: int                                  # the others, which verify names


@dataclass(frozen=True)
class ForeignArrays(Normalisation):
    """How the arrays of other tools are read."""

    key: str | None = option(None, "which array of npz files (default: the only one)", metavar="NAME")


def survey_images(content, places: Iterable[tuple[int, int]]) -> ImageSurvey:
    """Look at the headers of images. Raises TarError where none is an image."""
    forms: Counter = Counter()
    failure: TarError | None = None
    for offset, size in places:
        try:
            forms[look(content, offset, size)] += 1
        except ValueError as error:  # training takes another sample in its place
            forms[None] += 1
            failure = failure or TarError(str(error), offset)
    if failure and len(forms) == 1:
        raise failure
    return ImageSurvey(forms)


def survey_arrays(content, places: Iterable[tuple[int, int]], key: str | None) -> ArraySurvey:
    """Read arrays. Raises TarError where the first is none."""
    places = list(places)
    offset, size = places[0]
    try:
        data = content[offset:offset + size]
        channels, height, width = (first := read_array(data, key, MAX_ARRAY_BYTES)).shape
    except ValueError as error:
        raise TarError(str(error), offset) from None
    dtype, key = str(first.dtype), key or next(iter(array_names(data)), None)
    array, values, misfits = np.empty((height, width, channels), dtype), None, 0
    for offset, size in places:
        try:
            decode_array(Array(dtype, (), (), key), content[offset:offset + size], array)
            values = added(values, Values.of(array.transpose(2, 0, 1)))
        except ValueError:
            misfits += 1
    return ArraySurvey((width, height, channels, dtype, key), values, misfits)


def common_array(surveys: Sequence[ArraySurvey], arrays: ForeignArrays) -> tuple[int, int, Kind]:
    """Resolution, channels and kind of arrays. Says how many are unlike the others.

    Raises:
        InputError: they are no squares that training can use, or none of them can be read.
    """
    width, height, channels, dtype, key = surveys[0].form
    if width != height or width not in RESOLUTIONS:
        raise _no_square(width, height, channels, "bring them into this form")
    values = reduce(added, (survey.values for survey in surveys))
    if values is None:
        raise InputError("not one array can be read: stylegan-dist verify lists all damage")
    kind = checked(Array(dtype, *arrays.of(values), key), width, channels)
    if misfits := sum(survey.misfits for survey in surveys):
        print(f"{misfits} arrays have another form or values that are not finite: training takes others in their place, "
              "and stylegan-dist verify names them")
    return width, channels, kind


def common_form(surveys: Iterable[ImageSurvey]) -> tuple[int, int, dict]:
    """Resolution and channels that most images have, and, for the index, all forms. Says what is to be converted.

    Args:
        surveys: of each shard.

    Raises:
        InputError: they are no squares that training can use, or most have other sizes.
    """
    forms: Counter = Counter()
    for survey in surveys:
        forms.update(survey.forms)
    unreadable = forms.pop(None, 0)
    total = sum(forms.values())
    sizes: Counter = Counter()
    layouts: Counter = Counter()
    for (width, height, mode), number in forms.items():
        sizes[width, height] += number
        layouts[_CHANNELS.get(mode, 3)] += number
    (width, height), number = sizes.most_common(1)[0]
    channels = layouts.most_common(1)[0][0]
    if width != height or width not in RESOLUTIONS:
        raise _no_square(width, height, channels, "pack them instead (stylegan-dist pack)")
    if 2 * number < total:
        raise InputError(f"only {number} of {total} images have the commonest size, {width} x {height} pixels: pack them "
                         "instead (stylegan-dist pack)")
    fitting = MODES[channels]
    others = [(form, number) for form, number in forms.most_common() if form != (width, width, fitting)]
    if others:
        told = ", ".join(f"{number} of {w} x {h} pixels and mode {mode}" for (w, h, mode), number in others[:5])
        print(f"{sum(number for _, number in others)} of {total} images are not of {width} x {width} pixels and mode {fitting} "
              f"({told}{', ...' * (len(others) > 5)}): training converts them as stylegan-dist pack would")
    if unreadable:
        print(f"{unreadable} files are no images: training takes others in their place, and stylegan-dist verify names them")
    listed = [{"width": w, "height": h, "mode": mode, "images": number} for (w, h, mode), number in forms.most_common(_LISTED)]
    return width, channels, {"forms": listed}


def _no_square(width: int, height: int, channels: int, remedy: str) -> InputError:
    """The error for samples of a size that training cannot use."""
    return InputError(f"the samples are {width} x {height} pixels with {channels} channels; training needs squares of "
                      f"{', '.join(map(str, RESOLUTIONS))} pixels: {remedy}")
