"""The interface of a kind of samples."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.kinds.scores import SampleMetric
from stylegan_dist.kinds.values import Values
from stylegan_dist.ranges import Range

RESOLUTIONS = tuple(2**i for i in range(3, 11))  # of the sides of samples
MAX_CHANNELS = 128                               # of an array: latents of an autoencoder, frames of a clip
Decode = Callable[[bytes, Any], None]
Files = Iterable[tuple[str, Callable[[], bytes]]]  # name, and what reads the file or raises ValueError with the reason
_T = TypeVar("_T")


class Waveform(NamedTuple):
    """A sound."""

    rate: int             # samples a second
    samples: np.ndarray   # [N] in [-1, 1]


class Kind(ABC):
    """What the samples of a set are. A frozen dataclass of what its index declares of them, beside resolution and channels."""

    noun: ClassVar[str]   # for people, in the plural
    dtype: str            # of a decoded sample

    def layout(self, channels: int) -> str:
        """The channels of a sample, for people."""
        return f"{channels} channel{'s' * (channels > 1)}"

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """The fields that `index.json` and `state.json` have for this kind."""

    @abstractmethod
    def check(self, resolution: int, channels: int) -> None:
        """Raise ValueError saying what does not fit."""

    @abstractmethod
    def decoder(self, strict: bool) -> Decode:
        """A function that decodes the bytes of a sample into an array of `dtype` [H, W, C].

        It raises ValueError with the reason when they are no such sample. The array is undefined then.

        Args:
            strict: refuse a sample of another form, even if it could be converted.
        """

    @abstractmethod
    def to_network(self, samples: Tensor) -> Tensor:
        """Samples [N, C, H, W] of `dtype` to new float32 values in the network's range; memory format and device stay."""

    @abstractmethod
    def from_network(self, values: Tensor) -> Tensor:
        """The inverse, for what a network has made: integers are rounded, and clamped to the range of `dtype`."""

    def identity(self) -> dict[str, Any]:
        """Of the facts, those that decide what the samples are."""
        return self.facts()

    def mirrored_decoder(self, strict: bool) -> Decode | None:
        """As `decoder`, for the sample of what was mirrored left to right; None: that is the sample, mirrored."""
        return None

    @property
    def why_not_mirrored(self) -> str:
        """Why samples cannot be had mirrored, and what to do; empty where they can."""
        return ""

    def at(self, folder: Path) -> Kind:
        """The same with the folder of a run, which may hold what its samples are shown with."""
        return self

    def prepared(self, folder: Path) -> tuple[Kind, str]:
        """As `at`, before a training in a folder: what samples are shown with is kept there. And what the user should read.

        A training goes on without it, and shows what it can.
        """
        return self.at(folder), ""

    def as_pictures(self, values: Tensor) -> Tensor:
        """Values [N, C, H, W] in the network's range as pictures for people, [N, 1, 3 or 4, H, W] in the same range."""
        return values

    def shown_side(self, resolution: int) -> int:
        """Pixels of a side of these pictures; about, where they are not square."""
        return resolution

    def as_sound(self, values: Tensor) -> Waveform | None:
        """What a network has made, [C, H, W], as sound; None where the samples are none."""
        return None

    def as_film(self, values: Tensor) -> Film | None:
        """Values [N, C, H, W] in the network's range as what can be played; None of kinds that cannot be played."""
        return None

    def lines(self, values: Tensor) -> list[str] | None:
        """Values [N, C, H, W] in the network's range as lines of text; None where they are no text."""
        return None

    def settings(self) -> Mapping[str, int]:
        """Knobs of generators and discriminators made for such samples, by name: what they are where they are "auto"."""
        return {}

    def metrics(self) -> Mapping[str, SampleMetric]:
        """Scores of this kind of samples by the names of their metrics. Where there are any, they are the ones that
        `evaluate.metrics=auto` asks for, in their order."""
        return {}

    def save(self, path: Path, values: Tensor) -> None:
        """Write what a network has made, [C, H, W], as files for people. `path` has no ending. Raises OSError."""
        pixels = to_uint8(self.as_pictures(values[None])[0]).permute(1, 2, 0).cpu().numpy()
        PIL.Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(path.with_suffix(".png"))


class Film(NamedTuple):
    """Samples that can be played."""

    frames: Tensor    # [N, T, 1, 3 or 4, H, W] in the network's range
    fps: float


class Sample(NamedTuple):
    """A file of the source in the form of the shard set."""

    data: bytes                     # of the member of the tar file
    enlarged: bool = False          # an image that had fewer pixels
    values: Values | None = None    # of an array
    cut: bool = False               # a sound that was longer


class Options:
    """A frozen dataclass of options, made with `option`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Raise InputError naming the first option with a wrong value."""
        for field in dataclasses.fields(self):
            value, choices, span = getattr(self, field.name), field.metadata.get("choices"), field.metadata.get("span")
            if value is None and field.default is None:
                continue
            if choices and value not in choices:
                raise InputError(f"{field.name} must be one of {', '.join(map(str, choices))}, not {value!r}")
            if span and not isinstance(value, Collection) and value not in span:
                raise InputError(f"{field.name} must be {span}, not {value}")


class Packing(Options, ABC):
    """How files become samples. All of its options decide the bytes of a set."""

    noun: ClassVar[str]                 # what the files are, for people
    endings: ClassVar[tuple[str, ...]]  # of the files that are taken, lower case
    resolution: int
    channels: int | None
    encoding: str                       # ending of the members of the shards

    def decisive(self) -> dict[str, Any]:
        """The options as JSON. Sets are the same only if these are."""
        return dataclasses.asdict(self)

    @property
    @abstractmethod
    def raw_bytes(self) -> int:
        """Of a decoded sample."""

    @property
    def shape(self) -> tuple[int, int]:
        """Resolution and channels of the samples."""
        return self.resolution, self.channels or 1

    def completed(self, files: Files) -> Packing:
        """The same with what the first readable file decides.

        Raises:
            InputError: no file is readable, or the first that is does not fit.
        """
        return self

    @abstractmethod
    def sample(self, data: bytes) -> Sample:
        """The sample of a file. Raises ValueError with the reason when there is none."""

    @abstractmethod
    def kind(self, values: Values | None) -> Kind:
        """What the samples of the set are; `values`: those of all of them. Raises InputError when the options do not fit."""

    @abstractmethod
    def libraries(self) -> dict[str, str]:
        """Name and version of what else decides the bytes."""


def option(default: Any = dataclasses.MISSING, text: str = "", *, choices: Collection = (), span: Range | None = None,
           number: type | None = None, metavar: str | None = None, nargs: str | None = None) -> Any:
    """A field of `Options` and an option of the command line.

    Args:
        text: what it is, for people.
        choices, span: what it may be.
        number: int or float, where it is no text.
        metavar, nargs: as of argparse.
    """
    return dataclasses.field(default=default, metadata={
        "text": text, "choices": tuple(choices), "span": span, "number": number, "metavar": metavar, "nargs": nargs})


def first_readable(files: Files, noun: str, parse: Callable[[bytes], _T], advice: str = "") -> tuple[str, bytes, _T]:
    """Name, bytes and content of the first file that `parse` takes. Raises InputError when there is none."""
    failure = ""
    for name, read in files:
        try:
            data = read()
            return name, data, parse(data)
        except ValueError as error:
            failure = failure or f"{name!r}: {error}"
    raise InputError(f"none of the {noun} can be read: {failure}{advice}")


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1], any shape, to uint8: rounded to the nearest of 256 levels, then clamped.

    The exact inverse of `x / 127.5 - 1` for every uint8 x. NaN becomes 0, since casting it is undefined.
    """
    levels = (images.float() * 127.5 + 127.5).round().clamp(0, 255)
    return levels.nan_to_num(nan=0.0).to(torch.uint8)
