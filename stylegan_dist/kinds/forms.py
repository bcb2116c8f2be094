"""What `pack` makes of the files of a source: one class for each kind of sample, all with the same few methods."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np

from stylegan_dist.data.index import RESOLUTIONS
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import array as arrays
from stylegan_dist.kinds import audio
from stylegan_dist.kinds.array import DTYPES, ENCODINGS, MAX_CHANNELS, PACKED_KEY, ArrayForm
from stylegan_dist.kinds.audio import LogMel
from stylegan_dist.making.sources import ARRAY_ENDINGS, SOUND_ENDINGS, Source

NORMALISATIONS = ("range", "std", "none")
SOUND_DTYPES = ("float16", "float32")
_HOP_SECONDS = 0.016       # by the automatic rule, to the next power of two
_WINDOW_HOPS = (2, 4, 8)   # by the automatic rule, the first that tells all bands apart
MAX_ARRAY_BYTES = max(RESOLUTIONS) ** 2 * MAX_CHANNELS * 8  # of the largest array that can be packed, in float64
T = TypeVar("T")


class Sample(NamedTuple):
    """A file of the source in the form of the shard set."""

    data: bytes                        # of the member of the tar file
    enlarged: bool = False             # an image that had fewer pixels
    values: np.ndarray | None = None   # [C, H, W], of an array


class Form(Protocol):
    """A frozen dataclass of options; all its fields decide the bytes of a shard set."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    noun: ClassVar[str]                    # what the files are, for people
    endings: ClassVar[tuple[str, ...]]     # of the files that are taken

    @property
    def resolution(self) -> int: ...
    @property
    def channels(self) -> int | None: ...
    @property
    def encoding(self) -> str: ...                              # ending of the members
    @property
    def raw_bytes(self) -> int: ...                             # of a decoded sample
    def check(self) -> None: ...                                # raises InputError
    def completed(self, source: Source) -> Form: ...            # with what the first files decide; raises InputError
    def sample(self, data: bytes) -> Sample: ...                # in a worker; raises ValueError with the reason
    def array(self, values: Values | None) -> ArrayForm | None: ...  # what the index declares of arrays
    def library(self) -> dict[str, str]: ...                    # name -> version of what else decides the bytes


class Values:
    """Least, greatest, mean and spread of the values of arrays, channel by channel.

    Parts are added in the order of the set, so that the result does not depend on who computed which. Means and
    sums of squares are updated as by Chan, Golub and LeVeque (1983), without cancellation.
    """

    def __init__(self, record: dict | None = None):
        self.count = record["count"] if record else 0  # values of a channel
        rows = [record[name] for name in ("least", "greatest", "mean", "squares")] if record else np.zeros((4, 0))
        self.least, self.greatest, self.mean, self.squares = np.array(rows, np.float64)

    def record(self) -> dict:
        """For a JSON file, exactly."""
        names = ("least", "greatest", "mean", "squares")
        return {"count": self.count, **{name: getattr(self, name).tolist() for name in names}}

    def add_array(self, values: np.ndarray) -> None:
        """One array [C, H, W]."""
        rows = values.reshape(len(values), -1).astype(np.float64)
        part = Values()
        part.count, part.least, part.greatest, part.mean = rows.shape[1], rows.min(1), rows.max(1), rows.mean(1)
        part.squares = ((rows - part.mean[:, None]) ** 2).sum(1)
        self.add(part)

    def add(self, other: Values) -> None:
        if not self.count or not other.count:
            self.__dict__.update(other.__dict__ if other.count else {})
            return
        total, step = self.count + other.count, other.mean - self.mean
        self.squares = self.squares + other.squares + step**2 * (self.count * other.count / total)
        self.mean = self.mean + step * (other.count / total)
        self.least, self.greatest = np.minimum(self.least, other.least), np.maximum(self.greatest, other.greatest)
        self.count = total

    def normalisation(self, how: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Offset and scale of each channel: "range": to [-1, 1]; "std": mean 0, standard deviation 1/2; "none"."""
        if how == "none":
            return (0.0,), (1.0,)
        if how == "range":
            offset, scale = (self.greatest + self.least) / 2, (self.greatest - self.least) / 2
        else:
            offset, scale = self.mean, 2 * np.sqrt(self.squares / self.count)
        scale[scale == 0] = 1  # a channel that is the same everywhere
        return tuple(offset.tolist()), tuple(scale.tolist())


@dataclass(frozen=True)
class Normalisation:
    """How offset and scale of a set of arrays come about."""

    normalise: str = "range"                   # from the values: one of NORMALISATIONS
    offset: tuple[float, ...] | None = None    # given: one number, or one for each channel
    scale: tuple[float, ...] | None = None

    def check(self) -> None:
        """Raise InputError naming the first option with a wrong value."""
        choose("normalise", self.normalise, NORMALISATIONS)
        if (self.offset is None) != (self.scale is None):
            raise InputError("offset and scale belong together: give both, or neither for those that normalise computes")

    def of(self, values: Values) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Offset and scale."""
        if self.offset is not None and self.scale is not None:
            return tuple(self.offset), tuple(self.scale)
        return values.normalisation(self.normalise)

    def form(self, values: Values, channels: int, dtype: str, key: str | None, log_mel: LogMel | None = None) -> ArrayForm:
        """What the index declares. Raises InputError when the options do not fit the arrays."""
        if not values.count:
            raise InputError("not one array can be read: stylegan-dist verify lists all damage")
        form = ArrayForm(dtype, *self.of(values), key, log_mel)
        try:
            form.check(channels)
        except ValueError as error:
            raise InputError(str(error)) from None
        return form


@dataclass(frozen=True, kw_only=True)
class ArrayOptions(Normalisation):
    """Arrays as they are; nothing is resized. What is None is decided by the first file."""

    resolution: int                    # H and W
    channels: int | None = None        # C
    dtype: str | None = None           # one of DTYPES; another one than the files' converts where nothing is lost but digits
    key: str | None = None             # of npz files
    encoding: str = "npy"              # "npy" or "npz" (compressed)
    noun = "arrays"
    endings = ARRAY_ENDINGS

    @property
    def raw_bytes(self) -> int:
        return (self.channels or 1) * self.resolution**2 * np.dtype(self.dtype or "float32").itemsize

    def check(self) -> None:
        """Raise InputError naming the first option with a wrong value."""
        super().check()
        choose("resolution", self.resolution, RESOLUTIONS)
        choose("channels", self.channels, (None, *range(1, MAX_CHANNELS + 1)))
        choose("dtype", self.dtype, (None, *DTYPES))
        choose("encoding", self.encoding, ENCODINGS)

    def completed(self, source: Source) -> ArrayOptions:
        """The same with dtype, channels and key of the first readable file.

        Raises:
            InputError: none is readable, or the first that is does not fit.
        """
        name, data = first_readable(source, self.noun, lambda data: arrays.read_array(data, self.key, MAX_ARRAY_BYTES),
                                    "; --key NAME names one" if self.key is None else "")
        values = arrays.read_array(data, self.key, MAX_ARRAY_BYTES)
        key = self.key or next(iter(arrays.array_names(data)), None)
        form = replace(self, key=key, channels=self.channels or len(values), dtype=self.dtype or values.dtype.name)
        wanted = f"[{self.channels or f'1 to {MAX_CHANNELS}'}, {self.resolution}, {self.resolution}]"
        if values.shape != (form.channels, self.resolution, self.resolution) or len(values) > MAX_CHANNELS:
            raise InputError(f"{name} is an array of shape {list(values.shape)}: needed is {wanted}, channels first, or "
                             f"[{self.resolution}, {self.resolution}]; arrays are not resized, so bring them to a square of a "
                             "power of two, 8 to 1024, and give its side as --resolution")
        if form.dtype not in DTYPES:
            raise InputError(f"{name} is an array of {form.dtype}: say with --dtype as which of {', '.join(DTYPES)} it shall "
                             "be stored")
        return form

    def sample(self, data: bytes) -> Sample:
        """Check an array, and encode it. Raises ValueError with the reason when it is not like the others."""
        values = arrays.read_array(data, self.key, MAX_ARRAY_BYTES)
        expected = (self.channels, self.resolution, self.resolution)
        if values.shape != expected:
            raise ValueError(f"an array of shape {list(values.shape)} instead of {list(expected)}")
        arrays.check_finite(values)
        values = _converted(values, np.dtype(self.dtype))
        return Sample(arrays.encode_array(values, self.encoding), values=values)

    def array(self, values: Values | None) -> ArrayForm:
        key = PACKED_KEY if self.encoding == "npz" else None
        return self.form(present(values), present(self.channels), present(self.dtype), key)

    def library(self) -> dict[str, str]:
        return {"numpy": np.__version__}


@dataclass(frozen=True, kw_only=True)
class LogMelOptions(Normalisation):
    """Log-mel spectrograms of sound files, see kinds/audio.py. What is None follows from the first file's sample rate."""

    resolution: int                    # bands and frames
    hop: int | None = None             # samples
    window: int | None = None          # samples
    low_hz: float = 0.0
    high_hz: float | None = None       # None: half the sample rate
    floor_db: float = -80.0
    dtype: str = "float16"             # exact to 0.03 dB
    encoding: str = "npy"
    sample_rate: int | None = None     # Hz; files of another one are refused
    channels = 1
    noun = "sound files"
    endings = SOUND_ENDINGS

    @property
    def raw_bytes(self) -> int:
        return self.resolution**2 * np.dtype(self.dtype).itemsize

    def check(self) -> None:
        """Raise InputError naming the first option with a wrong value."""
        super().check()
        choose("resolution", self.resolution, RESOLUTIONS)
        choose("dtype", self.dtype, SOUND_DTYPES)
        choose("encoding", self.encoding, ENCODINGS)

    @property
    def log_mel(self) -> LogMel:
        """Of completed options."""
        return LogMel(present(self.sample_rate), present(self.hop), present(self.window), self.resolution, self.resolution,
                      self.low_hz, present(self.high_hz), self.floor_db)

    def completed(self, source: Source) -> LogMelOptions:
        """The same with sample rate and what follows from it.

        Raises:
            InputError: no file is readable, or spectrograms cannot be made so.
        """
        _, data = first_readable(source, self.noun, lambda data: audio.read_wav(data, 1))
        rate = self.sample_rate or audio.read_wav(data, 1)[0]
        hop = self.hop or 2 ** round(math.log2(rate * _HOP_SECONDS))
        form = replace(self, sample_rate=rate, hop=hop, high_hz=rate / 2 if self.high_hz is None else self.high_hz)
        failure = ""
        for window in (self.window,) if self.window else (hop * hops for hops in _WINDOW_HOPS):
            form = replace(form, window=window)
            try:
                form.log_mel.check()
                form.log_mel.check_bands()
                return form
            except ValueError as error:
                failure = str(error)
        raise InputError(f"no spectrograms can be made so: {failure}")

    def sample(self, data: bytes) -> Sample:
        """The spectrogram of a sound file. Raises ValueError with the reason when it cannot be had."""
        form = self.log_mel
        rate, samples = audio.read_wav(data, form.samples)
        if rate != form.sample_rate:
            raise ValueError(f"a sample rate of {rate} Hz instead of {form.sample_rate}: resample it")
        values = audio.log_mel(samples, form).astype(self.dtype)[None]
        return Sample(arrays.encode_array(values, self.encoding), values=values)

    def array(self, values: Values | None) -> ArrayForm:
        key = PACKED_KEY if self.encoding == "npz" else None
        return self.form(present(values), 1, self.dtype, key, self.log_mel)

    def library(self) -> dict[str, str]:
        return {"numpy": np.__version__}


def choose(name: str, value: object, choices: Collection) -> None:
    """Raise InputError unless the value of an option is one of its choices."""
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise InputError(f"{name} must be one of {known}, not {value!r}")


def first_readable(source: Source, noun: str, read, advice: str = "") -> tuple[str, bytes]:
    """Name and bytes of the first file of a source that `read` takes without a ValueError."""
    failure = ""
    for item in source.items:
        try:
            data = source.read(item.name)
            read(data)
            return item.name, data
        except ValueError as error:
            failure = failure or f"{item.name!r}: {error}"
    raise InputError(f"none of the {noun} can be read: {failure}{advice}")


def merged(parts: Iterable[dict | None]) -> Values | None:
    """The values of all shards from their records, in the order of the set; None where there are no arrays."""
    records = [record for record in parts if record]
    if not records:
        return None
    values = Values()
    for record in records:
        values.add(Values(record))
    return values


def present(value: T | None) -> T:
    """What is known by now."""
    assert value is not None
    return value


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
