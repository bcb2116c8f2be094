"""Samples that are arrays: what a set declares of them, reading them, and the way to the network's range and back.

An array [C, H, W] travels in its own dtype from the shard into the batch; on the device it becomes
(x - offset) / scale. Its bytes are not trusted: nothing is unpickled, and sizes are compared with what is
expected before anything is decompressed.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stylegan_dist.constants import constant
from stylegan_dist.kinds.audio import LogMel
from stylegan_dist.records import shorten

DTYPES = ("uint8", "int16", "float16", "float32")
MAX_CHANNELS = 4        # what the first layer of the discriminator reads
ENCODINGS = ("npy", "npz")
PACKED_KEY = "array"    # name of the array in the npz files that `pack` writes
_ZIP_START = b"PK"
MAX_HEADER = 4096      # bytes; those of plain arrays have 128
_ZIP_ENCRYPTED = 1
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class ArrayForm:
    """What all arrays of a set have in common, besides resolution and channels. Stored in the index.

    Training sees (x - offset) / scale, in float32.
    """

    dtype: str                        # one of DTYPES
    offset: tuple[float, ...]         # one for all channels, or one for each
    scale: tuple[float, ...]          # as many; none is zero
    key: str | None = None            # name of the array in an npz file; None: npy files
    log_mel: LogMel | None = None     # where the arrays are log-mel spectrograms, how they were made

    def check(self, channels: int) -> None:
        """Raise ValueError saying what does not fit."""
        if self.dtype not in DTYPES:
            raise ValueError(f"arrays of {self.dtype!r} instead of {', '.join(DTYPES)}")
        if not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"arrays of {channels} channels instead of 1 to {MAX_CHANNELS}")
        if len(self.offset) != len(self.scale) or len(self.scale) not in (1, channels):
            raise ValueError(f"{len(self.offset)} offsets and {len(self.scale)} scales for arrays of {channels} channels: "
                             "give one of each, or one of each for every channel")
        if not all(map(math.isfinite, (*self.offset, *self.scale))) or 0 in self.scale:
            raise ValueError(f"offset {self.offset} and scale {self.scale} must be finite numbers, and no scale zero")
        if self.log_mel:
            self.log_mel.check()

    def to_network(self, values: Tensor) -> Tensor:
        """Arrays [N, C, H, W] of the declared dtype to float32 in the network's range; memory format and device stay."""
        offset, scale = self._constants(values.device)
        return values.to(torch.float32, copy=True).sub_(offset).div_(scale)

    def from_network(self, values: Tensor) -> Tensor:
        """The inverse, for what a network has made: integers are rounded, and kept in the range of their dtype."""
        offset, scale = self._constants(values.device)
        values, dtype = values.float() * scale + offset, getattr(torch, self.dtype)
        if not dtype.is_floating_point:
            limits = torch.iinfo(dtype)
            values = values.nan_to_num(nan=0.0).round().clamp(limits.min, limits.max)
        return values.to(dtype)

    def as_pictures(self, values: Tensor) -> Tensor:
        """For people: [N, C, H, W] in the network's range to [N, 1 or 3, H, W] in the same.

        Two channels become red and green; of four the first three are shown. Low tones are at the bottom.
        """
        if self.log_mel:
            values = values.flip(2)
        if values.shape[1] == 2:
            values = torch.cat([values, torch.full_like(values[:, :1], -1)], dim=1)
        return values[:, :3]

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Offset and scale, [1 or C, 1, 1] each."""
        return _channels(self.offset, device), _channels(self.scale, device)


@constant
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def to_network(samples: Tensor, form: ArrayForm | None) -> Tensor:
    """A batch as it comes from the stream, [N, C, H, W], in the network's range: float32; images in [-1, 1].

    Args:
        form: None for images, which are uint8.
    """
    return samples.float().div_(127.5).sub_(1) if form is None else form.to_network(samples)


def as_pictures(samples: Tensor, form: ArrayForm | None) -> Tensor:
    """A batch as it comes from the stream as pictures for people: uint8, or float in [-1, 1]; [N, 1, 3 or 4, H, W]."""
    return samples if form is None else form.as_pictures(form.to_network(samples))


def decode_array(form: ArrayForm, data: bytes, out: np.ndarray) -> None:
    """Decode an array of a shard.

    Args:
        data: npy, or npz with the array of the declared name.
        out: of the declared dtype [H, W, C]; undefined after an error.

    Raises:
        ValueError: with the reason, when the bytes are not an array [C, H, W] (or [H, W], where C is 1) of this
            shape and dtype, or hold values that are not finite. Sizes are taken from headers, before anything is
            decompressed.
    """
    height, width, channels = out.shape
    start = _usual_header(form.dtype, (channels, height, width))
    if data[:len(start)] == start and len(data) == len(start) + out.nbytes:  # what `pack` writes: nothing to parse
        values = np.frombuffer(data, form.dtype, offset=len(start)).reshape(channels, height, width)
    else:
        values = read_array(data, form.key, out.nbytes)
        if values.shape != (channels, height, width):
            raise ValueError(f"an array of shape {list(values.shape)} instead of {[channels, height, width]}")
        if values.dtype != form.dtype:
            raise ValueError(f"an array of {values.dtype} instead of {form.dtype}")
    check_finite(values)
    out[...] = values.transpose(1, 2, 0)


def read_array(data: bytes, key: str | None, most: int) -> np.ndarray:
    """The array of an npy or npz file: [C, H, W], where [H, W] counts as one channel; a view of `data` for npy.

    Args:
        key: name of the array in an npz file; None: it must hold only one.
        most: bytes that its values may have.

    Raises:
        ValueError: with the reason, when there is no such array.
    """
    try:
        if data[:2] == _ZIP_START:
            data = _member(data, key, most)
        values = parse_npy(data, most)
    except MemoryError:
        raise
    except Exception as error:  # zipfile and NumPy raise nearly every kind on damaged bytes
        raise ValueError(str(error) or type(error).__name__) from None
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3:
        raise ValueError(f"an array of shape {list(values.shape)} instead of [C, H, W] or [H, W]")
    return values


def check_finite(values: np.ndarray) -> None:
    """Raise ValueError when a value is NaN or infinite."""
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        raise ValueError(f"{values.size - np.count_nonzero(finite)} of {values.size} values are NaN or infinite")


def array_names(data: bytes) -> list[str]:
    """The names of the arrays of an npz file; empty for another file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except Exception:  # as in read_array
        return []


def encode_array(values: np.ndarray, encoding: str) -> bytes:
    """The bytes of an npy or npz file of an array [C, H, W]. The same array gives the same bytes (npz: with one zlib)."""
    content = _usual_header(values.dtype.name, values.shape) + values.astype(values.dtype.newbyteorder("<")).tobytes()
    if encoding == "npy":
        return content
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo(f"{PACKED_KEY}.npy")  # its time is 1980 whenever it is made
        archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


@lru_cache(maxsize=16)
def _usual_header(dtype: str, shape: Sequence[int]) -> bytes:
    file = io.BytesIO()
    fields = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def _member(data: bytes, key: str | None, most: int) -> bytes:
    """The npy file in an npz file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if key is None and len(names) != 1:
            raise ValueError(f"the arrays {', '.join(map(repr, names[:8]))}, of which one must be named")
        key = names[0] if key is None else key
        if key not in names:
            raise ValueError(f"no array {key!r}; it holds {', '.join(map(repr, names[:8])) or 'nothing'}")
        info = archive.getinfo(f"{key}.npy")
        if info.file_size > most + MAX_HEADER:
            raise ValueError(f"the array {key!r} has {info.file_size} bytes, more than the {most} that are expected")
        if info.flag_bits & _ZIP_ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("encrypted, or compressed by another method than deflate")
        with archive.open(info) as file:  # checks the CRC-32 at the end of file_size bytes
            return file.read(info.file_size)  # without the number it would unpack everything, whatever is promised


def parse_npy(data: bytes, most: int) -> np.ndarray:
    """The array of numbers in an npy file, a view of `data`. Its header is short, and is not believed.

    Args:
        most: bytes that its values may have.

    Raises:
        ValueError: with the reason, when it is no such file.
    """
    if data[:6] != b"\x93NUMPY":
        raise ValueError("not an array (npy, npz)")
    shape, fortran, dtype, begin = _header(data[:MAX_HEADER])
    if dtype.kind not in "buif":
        raise ValueError(f"an array of {dtype}, which is not of numbers")
    if len(shape) > _MAX_DIMENSIONS or any(length < 0 for length in shape):
        raise ValueError(f"an array of shape {list(shape[:_MAX_DIMENSIONS + 1])}, which no array has")
    count = math.prod(shape)
    if count * dtype.itemsize > most:
        raise ValueError(f"an array of shape {list(shape)} and {dtype}: {count * dtype.itemsize} bytes, more than the "
                         f"{most} that are expected")
    if len(data) != begin + count * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes, its header promises {begin + count * dtype.itemsize}")
    values = np.frombuffer(data, dtype, count, offset=begin)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, order, dtype and length of an npy file's header. Raises ValueError."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"an npy file of version {version}, which plain arrays do not need")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return *read(file), file.tell()
    # NumPy has Python parse it, which has its own words for what is nested deeply: RecursionError, MemoryError.
    except Exception as error:
        raise ValueError(f"not the header of an array ({shorten(str(error))})") from None
