"""Clips: arrays [frames * C, H, W] of uint8, the channels of each frame side by side, that can be played."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import PIL.Image
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.kinds.array import MAX_ARRAY_BYTES, Array, checked
from stylegan_dist.kinds.base import MAX_CHANNELS, RESOLUTIONS, Film, Kind, Packing, Sample, option, to_uint8
from stylegan_dist.kinds.film import ANIMATED, BY_FFMPEG, CHANNELS, MOST_FPS, FilmForm, write_webp
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.kinds.motion import LoopingMotion, Motion
from stylegan_dist.kinds.npy import ENCODINGS, PACKED_KEY, encode_array, read_array
from stylegan_dist.kinds.pixels import FILTERS, FITS, Form
from stylegan_dist.kinds.scores import SampleMetric
from stylegan_dist.kinds.values import Values
from stylegan_dist.ranges import Range

_LEVELS = 127.5     # offset and scale: the network sees [-1, 1]


@dataclass(frozen=True)
class Clip(Array):
    """Arrays with `film`. A picture of a clip is its middle frame."""

    noun = "clips"

    @property
    def form(self) -> FilmForm:
        assert self.film, "it is a clip"
        return self.film

    def layout(self, channels: int) -> str:
        per = self.form.channels
        loops = ", looping" if self.form.loops else ""
        return f"{self.form.frames} frames of {per} channel{'s' * (per > 1)}, {self.form.fps:g} per second{loops}"

    def check(self, resolution: int, channels: int) -> None:
        super().check(resolution, channels)
        self.form.check()
        if channels != self.form.frames * self.form.channels:
            raise ValueError(f"{channels} channels are not {self.form.frames} frames of {self.form.channels}")
        if self.dtype != "uint8":
            raise ValueError(f"clips of {self.dtype} instead of uint8")

    def as_film(self, values: Tensor) -> Film:
        """Also of clips with more frames than those of the set."""
        return Film(values.unflatten(1, (-1, self.form.channels)), self.form.fps)

    def as_pictures(self, values: Tensor) -> Tensor:
        frames = self.as_film(values).frames
        return frames[:, frames.shape[1] // 2]

    def settings(self) -> Mapping[str, int]:
        return {"frames": self.form.frames, "loop_frames": self.form.frames if self.form.loops else 0}

    def metrics(self) -> Mapping[str, SampleMetric]:
        return {"motion": (LoopingMotion if self.form.loops else Motion)(self.form.frames, self.form.channels)}

    def save(self, path: Path, values: Tensor) -> None:
        """As an animated WebP file."""
        pixels = to_uint8(self.as_film(values[None]).frames[0]).permute(0, 2, 3, 1).cpu().numpy()
        pictures = (PIL.Image.fromarray(one.squeeze(2) if one.shape[2] == 1 else one) for one in pixels)
        write_webp(path.with_suffix(".webp"), [picture.convert("RGB") for picture in pictures], self.form.fps)


@dataclass(frozen=True, kw_only=True)
class ClipOptions(Packing):
    """How clips are cut from videos. The form of frames is that of images."""

    resolution: int = option(text="side of the square", choices=RESOLUTIONS, number=int, metavar="PIXELS")
    channels: int = option(3, "1 grey, 3 colour", choices=CHANNELS, number=int)
    fit: str = option("crop", "crop: the largest square from the centre; pad: the whole image with borders", choices=FITS)
    filter: str = option("lanczos", "how pixels are averaged: lanczos is sharper, box keeps hard edges free of ringing",
                         choices=FILTERS)
    background: str = option("white", "a name or #rrggbb: below transparent pixels and in the borders of --fit pad; "
                             "with 4 channels both stay transparent", metavar="COLOUR")
    frames: int = option(16, "of a clip", span=Range(2, MAX_CHANNELS), number=int, metavar="FRAMES")
    stride: int | None = option(None, "frames from the beginning of a clip to that of the next one of the video (default: as "
                                "many as a clip has)", span=Range(1, 1_000_000), number=int, metavar="FRAMES")
    fps: float | None = option(None, "frames per second: videos of other rates lose or repeat frames (default: that of the "
                               "first video; 25 of folders of frames)", span=Range(above=0, most=MOST_FPS), number=float,
                               metavar="RATE")
    loops: str = option("no", "whether the first frame of every clip follows its last one, as in closed animations",
                        choices=("no", "yes"))
    encoding: str = option("npy", "npz: compressed", choices=ENCODINGS)
    noun = "clips"
    endings = (*BY_FFMPEG, *ANIMATED, *(ending for ending in ImageOptions.endings if ending not in ANIMATED))

    def check(self) -> None:
        super().check()
        if self.frames * self.channels > MAX_CHANNELS:
            raise InputError(f"{self.frames} frames of {self.channels} channels are {self.frames * self.channels} numbers a "
                             f"pixel, more than {MAX_CHANNELS}: give --frames {MAX_CHANNELS // self.channels} or fewer"
                             + (", or --channels 1" if self.channels > 1 else ""))
        ImageOptions(resolution=self.resolution, fit=self.fit, filter=self.filter, background=self.background).check()

    @property
    def raw_bytes(self) -> int:
        return self.frames * self.channels * self.resolution**2

    @property
    def shape(self) -> tuple[int, int]:
        return self.resolution, self.frames * self.channels

    @property
    def frame_form(self) -> Form:
        """What each frame becomes."""
        return Form(self.resolution, self.channels, self.fit, self.filter, self.background)

    def sample(self, data: bytes) -> Sample:
        """The sample of a clip, which is an npy file [frames, C, H, W] flattened to [frames * C, H, W]."""
        values = read_array(data, None, MAX_ARRAY_BYTES)
        return Sample(data if self.encoding == "npy" else encode_array(values, self.encoding), values=Values.of(values))

    def clip_bytes(self, frames: np.ndarray) -> bytes:
        """What `sample` takes, of frames uint8 [frames, C, H, W]."""
        return encode_array(frames.reshape(-1, *frames.shape[2:]), "npy")

    def kind(self, values: Values | None) -> Kind:
        assert self.fps is not None, "it is completed"
        form = FilmForm(self.frames, self.channels, self.fps, self.loops == "yes")
        return checked(Clip("uint8", (_LEVELS,), (_LEVELS,), PACKED_KEY if self.encoding == "npz" else None, film=form),
                       *self.shape)

    def libraries(self) -> dict[str, str]:
        return {"pillow": PIL.__version__, "numpy": np.__version__}
