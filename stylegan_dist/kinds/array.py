"""Samples that are arrays [C, H, W]. They keep their dtype up to the device, where they become (x - offset) / scale."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_dist.arguments import FLOAT32
from stylegan_dist.constants import constant
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.audio import LogMel
from stylegan_dist.kinds.base import (
    MAX_CHANNELS,
    RESOLUTIONS,
    Decode,
    Files,
    Kind,
    Options,
    Packing,
    Sample,
    first_readable,
    option,
)
from stylegan_dist.kinds.encoder import Encoder
from stylegan_dist.kinds.film import FilmForm
from stylegan_dist.kinds.npy import ENCODINGS, PACKED_KEY, array_names, encode_array, read_array, usual_header
from stylegan_dist.kinds.spectrum import Spectrum
from stylegan_dist.kinds.values import Values
from stylegan_dist.ranges import Range
from stylegan_dist.records import shorten

DTYPES = ("uint8", "int16", "float16", "float32")
NORMALISATIONS = ("range", "std", "none")
MAX_ARRAY_BYTES = 1 << 25  # of the largest array that can be packed: 4 x 1024 x 1024 in float64, or 128 x 256 x 256 in float32


@dataclass(frozen=True)
class TextForm:
    """What the lines of a set of text have in common.

    Attributes:
        symbols: the alphabet in the order of the rows; the first one is the blank, with which lines are filled up.
        length: positions of a line.
        held_out: lines of the same text that the set does not have, for scores.
    """

    symbols: str
    length: int
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Array(Kind):
    """What all arrays of a set have in common. Training sees (x - offset) / scale, in float32."""

    dtype: str                        # one of DTYPES
    offset: tuple[float, ...]         # one for all channels, or one for each; of sounds also one for each band of each channel
    scale: tuple[float, ...]          # as many; none is zero
    key: str | None = None            # name of the array in an npz file; None: npy files
    log_mel: LogMel | None = None     # how they were made, where they are the spectrograms of sounds (`Sound`)
    spectrum: Spectrum | None = None  # the same of linear spectrograms
    film: FilmForm | None = None      # where they are clips (`Clip`)
    text: TextForm | None = None      # where they are lines of text (`Text`)
    encoder: Encoder | None = None    # what they were made with, where they are latents of pictures (`Latents`)
    mirrored: bool = False            # each latent is stored with that of the mirrored picture behind it
    noun = "arrays"

    def layout(self, channels: int) -> str:
        return f"{super().layout(channels)} of {self.dtype}"

    def facts(self) -> dict[str, Any]:
        latents = ("encoder", "mirrored")  # which other sets do not name
        own = {one.name for one in fields(Array)}  # and what else a kind has is no fact
        found = {name: value for name, value in asdict(self).items() if name in own and (self.encoder or name not in latents)}
        for name in ("film", "spectrum", "text"):  # earlier versions did not write them: a run knows its data by them
            if found[name] is None:
                del found[name]
        return {"array": found}

    def check(self, resolution: int, channels: int) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"arrays of {shorten(self.dtype)} instead of {', '.join(DTYPES)}")
        made = ("log_mel", "spectrum", "film", "text", "encoder")
        if len(given := [name for name in made if getattr(self, name)]) > 1 or (self.mirrored and not self.encoder):
            raise ValueError(f"{' and '.join(given) or 'mirrored'}: an array is of one of {', '.join(made)}, and only latents "
                             "are mirrored")
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"arrays of {channels} channels instead of 1 to {MAX_CHANNELS}")
        if len(self.offset) != len(self.scale) or len(self.scale) not in self._counts(resolution, channels):
            raise ValueError(f"{len(self.offset)} offsets and {len(self.scale)} scales for arrays of {channels} channels: "
                             "give one of each, or one of each for every channel")
        if not all(map(math.isfinite, (*self.offset, *self.scale))) or 0 in self.scale:
            raise ValueError(f"offset {self.offset} and scale {self.scale} must be finite numbers, and no scale zero")

    def _counts(self, resolution: int, channels: int) -> tuple[int, ...]:
        """How many offsets and scales there may be."""
        return 1, channels

    def decoder(self, strict: bool) -> Decode:
        return partial(decode_array, self)

    def to_network(self, samples: Tensor) -> Tensor:
        offset, scale = self._constants(samples)
        return samples.to(torch.float32, copy=True).sub_(offset).div_(scale)

    def from_network(self, values: Tensor) -> Tensor:
        offset, scale = self._constants(values)
        values, dtype = values.float() * scale + offset, getattr(torch, self.dtype)
        if not dtype.is_floating_point:
            limits = torch.iinfo(dtype)
            values = values.nan_to_num(nan=0.0).round().clamp(limits.min, limits.max)
        return values.to(dtype)

    def as_pictures(self, values: Tensor) -> Tensor:
        """Two channels become red and green; of four the first three are shown."""
        if values.shape[1] == 2:
            values = torch.cat([values, torch.full_like(values[:, :1], -1)], dim=1)
        return values[:, :3]

    def save(self, path: Path, values: Tensor) -> None:
        super().save(path, values)
        np.save(path.with_suffix(".npy"), self.from_network(values[None])[0].cpu().numpy())

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Offset and scale, [1 or C, 1 or H, 1] each."""
        channels = like.shape[1] if len(self.offset) > 1 else 1
        return _channels(self.offset, channels, like.device), _channels(self.scale, channels, like.device)


@constant
def _channels(values: tuple[float, ...], channels: int, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(channels, -1, 1)


def decode_array(array: Array, data: bytes, out: np.ndarray) -> None:
    """Decode npy bytes, or npz with the array of the declared name.

    Args:
        out: of the declared dtype [H, W, C]; undefined after an error.

    Raises:
        ValueError: with the reason, when the bytes are not an array [C, H, W] (or [H, W], where C is 1) of this
            shape and dtype, or hold values that are not finite.
    """
    height, width, channels = out.shape
    start = usual_header(array.dtype, (channels, height, width))
    if data[:len(start)] == start and len(data) == len(start) + out.nbytes:  # what `pack` writes: nothing to parse
        values = np.frombuffer(data, array.dtype, offset=len(start)).reshape(channels, height, width)
    else:
        values = read_array(data, array.key, out.nbytes)
        if values.shape != (channels, height, width):
            raise ValueError(f"an array of shape {list(values.shape)} instead of {[channels, height, width]}")
        if values.dtype != array.dtype:
            raise ValueError(f"an array of {values.dtype} instead of {array.dtype}")
    check_finite(values)
    out[...] = values.transpose(1, 2, 0)


def check_finite(values: np.ndarray) -> None:
    """Raise ValueError when a value is NaN or infinite."""
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        raise ValueError(f"{values.size - np.count_nonzero(finite)} of {values.size} values are NaN or infinite")


@dataclass(frozen=True)
class Normalisation(Options):
    """How offset and scale of a set of arrays come about."""

    normalise: str = option("range", "range: offset and scale so that each channel has its least value at -1 and its "
                            "greatest at 1; std: so that it has mean 0 and standard deviation 1/2; none: 0 and 1",
                            choices=NORMALISATIONS)
    offset: tuple[float, ...] | None = option(None, "given instead: one, or one for each channel", span=FLOAT32, number=float,
                                              nargs="+", metavar="X")
    scale: tuple[float, ...] | None = option(None, "as many", span=FLOAT32, number=float, nargs="+", metavar="X")

    def check(self) -> None:
        super().check()
        if (self.offset is None) != (self.scale is None):
            raise InputError("offset and scale belong together: give both, or neither for those that normalise computes")

    def of(self, values: Values) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Offset and scale."""
        if self.offset is not None and self.scale is not None:
            return tuple(self.offset), tuple(self.scale)
        return values.normalisation(self.normalise)


def checked(kind: Kind, resolution: int, channels: int) -> Kind:
    """The same. Raises InputError where its facts do not fit together."""
    try:
        kind.check(resolution, channels)
    except ValueError as error:
        raise InputError(str(error)) from None
    return kind


@dataclass(frozen=True, kw_only=True)
class ArrayOptions(Normalisation, Packing):
    """Arrays as they are; nothing is resized. What is None is decided by the first file."""

    resolution: int = option(text="H and W", choices=RESOLUTIONS, number=int, metavar="PIXELS")
    channels: int | None = option(None, "default those of the first", span=Range(1, MAX_CHANNELS), number=int)
    dtype: str | None = option(None, "to store; another one than that of the files converts where nothing but digits is lost "
                               "(default: that of the first)", choices=DTYPES)
    key: str | None = option(None, "which array of npz files (default: the only one)", metavar="NAME")
    encoding: str = option("npy", "npz: compressed", choices=ENCODINGS)
    noun = "arrays"
    endings = (".npy", ".npz")

    @property
    def raw_bytes(self) -> int:
        return (self.channels or 1) * self.resolution**2 * np.dtype(self.dtype or "float32").itemsize

    def completed(self, files: Files) -> ArrayOptions:
        """With dtype, channels and key of the first readable file."""
        name, data, values = first_readable(files, self.noun, lambda data: read_array(data, self.key, MAX_ARRAY_BYTES),
                                            "; --key NAME names one" if self.key is None else "")
        key = self.key or next(iter(array_names(data)), None)
        options = replace(self, key=key, channels=self.channels or len(values), dtype=self.dtype or values.dtype.name)
        wanted = f"[{self.channels or f'1 to {MAX_CHANNELS}'}, {self.resolution}, {self.resolution}]"
        if values.shape != (options.channels, self.resolution, self.resolution) or len(values) > MAX_CHANNELS:
            raise InputError(f"{name} is an array of shape {list(values.shape)}: needed is {wanted}, channels first, or "
                             f"[{self.resolution}, {self.resolution}]; arrays are not resized, so bring them to a square of a "
                             "power of two, 8 to 1024, and give its side as --resolution")
        if options.dtype not in DTYPES:
            raise InputError(f"{name} is an array of {options.dtype}: say with --dtype as which of {', '.join(DTYPES)} it "
                             "shall be stored")
        return options

    def sample(self, data: bytes) -> Sample:
        """Check an array, and encode it. Raises ValueError with the reason when it is not like the others."""
        values = read_array(data, self.key, MAX_ARRAY_BYTES)
        expected = (self.channels, self.resolution, self.resolution)
        if values.shape != expected:
            raise ValueError(f"an array of shape {list(values.shape)} instead of {list(expected)}")
        check_finite(values)
        values = _converted(values, np.dtype(self.dtype))
        return Sample(encode_array(values, self.encoding), values=Values.of(values))

    def kind(self, values: Values | None) -> Kind:
        assert values is not None, "there is a sample"
        assert self.dtype is not None, "it is completed"
        assert self.channels is not None, "it is completed"
        key = PACKED_KEY if self.encoding == "npz" else None
        return checked(Array(self.dtype, *self.of(values), key), self.resolution, self.channels)

    def libraries(self) -> dict[str, str]:
        return {"numpy": np.__version__}


def _converted(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """In the declared dtype; raises ValueError where more than digits would be lost."""
    if values.dtype == dtype:
        return values
    if dtype.kind != "f" and values.dtype.kind not in "bui":
        raise ValueError(f"an array of {values.dtype} instead of {dtype}")
    with np.errstate(over="ignore"):
        converted = values.astype(dtype)
    if not (np.isfinite(converted).all() if dtype.kind == "f" else (converted == values).all()):
        raise ValueError(f"an array of {values.dtype} with values that {dtype} does not have")
    return converted
