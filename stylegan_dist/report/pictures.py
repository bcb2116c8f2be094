"""Pictures inside the page: PNG files of a run as WebP in data URIs, within a number of bytes.

Where a GIF of the same name lies beside a grid of samples, these are clips, and it is shown in place of the grid.
"""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageSequence

from stylegan_dist.files import open_regular
from stylegan_dist.monitor.images import ABOUT
from stylegan_dist.report.foreign import shown
from stylegan_dist.report.thinning import evenly
from stylegan_dist.training.run_folder import SAMPLES_NAME

# Longest side in pixels, and quality. The first is taken at which all pictures fit, or enough of them for a slider.
RUNGS = ((2048, 82), (1600, 78), (1280, 72), (1024, 64), (768, 56), (512, 50), (256, 40))
ENOUGH = 64
LAST_SHARE = 0.08    # of the room, for the newest of a series, which is seen first and may be better than the others
PROBES = 5           # pictures that are encoded to see how much room one takes
MOST_BYTES = 1 << 29  # of a file
MOST_PIXELS = 170_000_000  # of a picture; Pillow refuses more, as a few bytes could fill the memory
BIG = 1 << 24        # pixels from which pictures are decoded one by one


class Unreadable(Exception):
    """A picture that cannot be shown, and why."""


@dataclass(frozen=True)
class Picture:
    """A picture as it is in the page; `full` is the size of the file's, `about` what the file says that it shows."""

    uri: str
    width: int
    height: int
    full: tuple[int, int]
    about: str = ""


@dataclass(frozen=True)
class Grids:
    """Pictures of a series by their place in it, and what was left out or made smaller."""

    pictures: dict[int, Picture]
    notes: list[str]


def encode(path: Path, side: int, quality: int) -> Picture:
    """A PNG file as WebP, made smaller if a side has more than `side` pixels; of samples that are clips the GIF, moving.

    Raises:
        Unreadable: it is no PNG, or no GIF, damaged, or too large.
    """
    moving = path.with_suffix(".gif")
    if path.parent.name == SAMPLES_NAME and moving.is_file():
        path = moving
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here
            content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise Unreadable(f"it has more than {MOST_BYTES >> 20} MiB")
            with Image.open(io.BytesIO(content), formats=["PNG", "GIF"]) as image:
                full = image.size
                if full[0] * full[1] * getattr(image, "n_frames", 1) > MOST_PIXELS:
                    raise Unreadable(f"it has {full[0]} x {full[1]} pixels"
                                     + (" in all frames" if image.format == "GIF" else ""))
                about = image.info.get(ABOUT, "")
                return replace(_encoded(image, full, side, quality), about=shown(about) if isinstance(about, str) else "")
    except Unreadable:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
        raise Unreadable(" ".join(reason.split())[:200]) from None


def _encoded(image: Image.Image, full: tuple[int, int], side: int, quality: int) -> Picture:
    frames = [_smaller(frame, side) for frame in ImageSequence.Iterator(image)]
    written, more = io.BytesIO(), {}
    if len(frames) > 1:
        more = {"save_all": True, "append_images": frames[1:], "duration": image.info.get("duration", 100), "loop": 0}
    frames[0].save(written, format="WEBP", quality=quality, method=3, **more)
    return Picture("data:image/webp;base64," + base64.b64encode(written.getvalue()).decode(), *frames[0].size, full)


def _smaller(image: Image.Image, side: int) -> Image.Image:
    factor = -(-max(image.size) // (2 * side))
    small = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    if factor > 1:  # in whole steps first, which is faster
        small = small.reduce(factor)
    if max(small.size) > side:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def encode_one(path: Path, room: int) -> Picture | None:
    """A picture as good as the room allows, in characters; None if it does not fit at all.

    Raises:
        Unreadable: as `encode`.
    """
    for side, quality in RUNGS:
        picture = encode(path, side, quality)
        if len(picture.uri) <= room:
            return picture
    return None


def encode_series(files: Sequence[Path], room: int) -> Grids:
    """Pictures of a series, evenly thinned if they do not fit, the first and the last always among them.

    Args:
        room: characters that all together may take.
    """
    broken: dict[int, str] = {}
    newest: Picture | None = None
    try:
        newest = encode_one(files[-1], int(LAST_SHARE * room))
    except Unreadable as error:
        broken[len(files) - 1] = str(error)
    room -= len(newest.uri) if newest else 0
    side, quality, fit = _rung(files, room, broken)
    chosen = evenly(len(files), fit)
    encoded = _encode_all(files, chosen, side, quality, broken)
    order = sorted(encoded)
    most = len(order)
    while order and (total := sum(len(encoded[i].uri) for i in order)) > room:
        most = max(min(int(most * room / total), most - 1), 0)
        order = [sorted(encoded)[i] for i in evenly(len(encoded), most)]
    pictures = {i: encoded[i] for i in order}
    if newest:
        pictures[len(files) - 1] = newest
    return Grids(pictures, [*_notes(len(files), pictures, broken, files)])


def _notes(count: int, pictures: dict[int, Picture], broken: dict[int, str], files: Sequence[Path]):
    if len(pictures) < count - len(broken):
        yield f"{len(pictures)} of {count} sample grids are shown, evenly spaced, so that the file stays small"
    smaller = [one for one in pictures.values() if (one.width, one.height) != one.full]
    if smaller:
        least, last = min(smaller, key=lambda one: one.width), pictures[max(pictures)]
        yield (f"sample grids of {least.full[0]} x {least.full[1]} pixels are shown with {least.width} x {least.height}"
               + (f", the newest with {last.width} x {last.height}" if last.width > least.width else ""))
    for i, why in sorted(broken.items())[:3]:
        yield f"{files[i].name} cannot be shown: {why}"
    if len(broken) > 3:
        yield f"{len(broken) - 3} more grids cannot be shown"


def _rung(files: Sequence[Path], room: int, broken: dict[int, str]) -> tuple[int, int, int]:
    """(longest side, quality, how many fit)."""
    fit = 0
    for side, quality in RUNGS:
        probes = _encode_all(files, evenly(len(files), PROBES), side, quality, broken)
        if not probes:
            return side, quality, len(files)
        fit = int(room / (1.1 * sum(len(one.uri) for one in probes.values()) / len(probes)))
        if fit >= min(len(files), ENOUGH):
            break
    return side, quality, min(fit, len(files))


def _encode_all(files: Sequence[Path], which: Sequence[int], side: int, quality: int, broken: dict[int, str],
                encode: Callable[[Path, int, int], Picture] = encode) -> dict[int, Picture]:
    """Those that can be read; the others are added to `broken`."""
    done: dict[int, Picture] = {}

    def one(i: int) -> None:
        try:
            done[i] = encode(files[i], side, quality)
        except Unreadable as error:
            broken[i] = str(error)

    workers = min(os.cpu_count() or 1, 8) if _pixels(files, which) < BIG else 1
    with ThreadPoolExecutor(workers) as pool:  # Pillow encodes without holding the interpreter's lock
        list(pool.map(one, which))
    return done


def _pixels(files: Sequence[Path], which: Sequence[int]) -> int:
    """Of the last picture, as its file says."""
    try:
        with open_regular(files[which[-1]]) as file, Image.open(file, formats=["PNG"]) as image:
            return image.size[0] * image.size[1]
    except Exception:
        return 0
