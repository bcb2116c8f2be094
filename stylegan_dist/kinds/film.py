"""Videos: their frames, from files of bytes that are not trusted, and clips as animated WebP files.

GIF and WebP are read by Pillow, all others by ffmpeg (package imageio-ffmpeg).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from stylegan_dist.errors import InputError
from stylegan_dist.files import replacing
from stylegan_dist.kinds.base import MAX_CHANNELS
from stylegan_dist.kinds.pixels import Form, converted, opened

ANIMATED = (".gif", ".webp")                 # pictures that may be videos
BY_FFMPEG = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv")
CHANNELS = (1, 3)                            # of a frame
MOST_FPS = 1000.0
FOLDER_FPS = 25.0                            # of frames in a folder, where nothing else is said
MOST_FILM_BYTES = 1 << 30                    # of a video in the form of the set; it is held in memory
_USUAL_MS = 100                              # of a frame of an animation that says nothing; browsers do the same
_QUALITY = 90                                # of WebP


@dataclass(frozen=True)
class FilmForm:
    """What the clips of a set have in common. Stored in the index."""

    frames: int
    channels: int            # of a frame
    fps: float
    loops: bool = False      # whether the first frame follows the last one

    def check(self) -> None:
        """Raise ValueError saying what is impossible."""
        if not 2 <= self.frames <= MAX_CHANNELS:
            raise ValueError(f"clips of {self.frames} frames instead of 2 to {MAX_CHANNELS}")
        if self.channels not in CHANNELS:
            raise ValueError(f"frames of {self.channels} channels instead of {' or '.join(map(str, CHANNELS))}")
        if not 0 < self.fps <= MOST_FPS:
            raise ValueError(f"{self.fps:g} frames per second instead of more than 0 and at most {MOST_FPS:g}")


@dataclass(frozen=True)
class Facts:
    """Of a video: how many frames, and how many of them a second."""

    frames: int
    fps: float

    def count_at(self, fps: float) -> int:
        """Frames at another rate."""
        return math.floor((self.frames - 1) / self.fps * fps + 1e-6) + 1

    def places_at(self, fps: float) -> np.ndarray:
        """Which frame is shown at each time of another rate: int64 [count_at(fps)]."""
        return np.minimum(np.rint(np.arange(self.count_at(fps)) * (self.fps / fps)).astype(np.int64), self.frames - 1)


def is_by_ffmpeg(name: str) -> bool:
    """Whether a file is a video for ffmpeg, by its name."""
    return os.path.splitext(name)[1].lower() in BY_FFMPEG


def check_ffmpeg(name: str) -> None:
    """Raise InputError where ffmpeg is needed for a file and not there."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise InputError(f'{name} needs the package imageio-ffmpeg: pip install "stylegan-dist[film]"; GIF, animated WebP and '
                         "folders of frames need nothing")


def measure_animation(data: bytes) -> Facts:
    """Of a GIF or WebP file; one frame where it does not move. Raises ValueError with the reason where it is no such file."""
    with opened(data) as image:
        frames = getattr(image, "n_frames", 1)
        if frames == 1:
            return Facts(1, FOLDER_FPS)
        durations = []
        for number in range(min(frames, 64)):
            image.seek(number)
            image.load()  # WebP tells how long a frame is shown only when it is decoded
            durations.append(image.info.get("duration") or _USUAL_MS)
    return Facts(frames, _rate(1000 * len(durations) / sum(durations)))


def measure_film(data: bytes) -> Facts:
    """Of a video for ffmpeg, whose frames are counted by decoding them. Raises ValueError with the reason."""
    with _placed(data) as path, contextlib.closing(_raw_frames(path)) as raw:
        rate = next(raw)["fps"]
        frames = sum(1 for _ in raw)
    if not frames:
        raise ValueError("no frames")
    return Facts(frames, _rate(rate))


def read_film(data: bytes, animation: bool, form: Form, wanted: Sequence[int]) -> np.ndarray:
    """Frames of a video in the form of the set: uint8 [len(wanted), C, H, W].

    Args:
        animation: GIF or WebP.
        wanted: their numbers, not falling.
    Raises:
        ValueError: with the reason where it cannot be decoded, or has fewer frames.
    """
    found: list[np.ndarray] = []
    with contextlib.closing(_animation(data) if animation else _film(data)) as pictures:
        for number, picture in enumerate(pictures):
            if number == wanted[len(found)]:
                frame = pixels_of(picture, form)
                while len(found) < len(wanted) and wanted[len(found)] == number:
                    found.append(frame)
                if len(found) == len(wanted):
                    return np.stack(found)
    raise ValueError(f"it ends before frame {wanted[len(found)]}")


def pixels_of(picture: Image.Image, form: Form) -> np.ndarray:
    """A frame in the form of the set: uint8 [C, H, W]. Raises ValueError with the reason."""
    pixels = np.asarray(converted(picture, form).image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def write_webp(path: Path, pictures: Sequence[Image.Image], fps: float) -> None:
    """An endless animation, whole or not at all. Raises OSError."""
    with replacing(path) as temporary:
        first, *others = pictures
        first.save(temporary, format="WEBP", save_all=True, append_images=others, duration=frame_ms(fps), loop=0,
                   quality=_QUALITY, method=4)


def frame_ms(fps: float) -> int:
    """How long a frame is shown, in whole milliseconds."""
    return max(1, round(1000 / fps))


def _rate(fps: float) -> float:
    return min(max(round(float(fps), 3), 0.001), MOST_FPS)


def _animation(data: bytes) -> Generator[Image.Image]:
    with opened(data) as image:
        for frame in ImageSequence.Iterator(image):
            yield frame.copy()


def _film(data: bytes) -> Generator[Image.Image]:
    with _placed(data) as path, contextlib.closing(_raw_frames(path)) as raw:
        width, height = next(raw)["size"]
        for frame in raw:
            yield Image.frombytes("RGB", (width, height), frame)


def _raw_frames(path: str) -> Generator[Any]:
    """What imageio-ffmpeg gives: a dictionary about the video, then RGB bytes of each frame. Raises ValueError."""
    import imageio_ffmpeg

    # Of a film that is turned, as those of telephones are, it would say for each reading that the size is another one.
    logging.getLogger(imageio_ffmpeg.__name__).setLevel(logging.ERROR)
    # A playlist with the name of a video could name other files and addresses.
    raw = imageio_ffmpeg.read_frames(path, pix_fmt="rgb24", input_params=["-protocol_whitelist", "file"])
    try:
        yield from raw
    except Exception as error:  # it has many kinds, with the whole output of ffmpeg
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"ffmpeg cannot decode it ({lines[-1][:160] if lines else type(error).__name__})") from None
    finally:
        raw.close()


@contextlib.contextmanager
def _placed(data: bytes) -> Generator[str]:
    """The bytes as a file: videos are read from several places at once."""
    with tempfile.NamedTemporaryFile(prefix="stylegan-dist-", suffix=".video") as file:
        file.write(data)
        file.flush()
        yield file.name
