"""Arrays in NumPy's files, npy and npz, whose bytes are not trusted.

Nothing is unpickled, and sizes are compared with what is expected before anything is decompressed.
"""

from __future__ import annotations

import io
import math
import zipfile
from functools import lru_cache

import numpy as np

from stylegan_dist.records import shorten

ENCODINGS = ("npy", "npz")
PACKED_KEY = "array"    # name of the array in the npz files that `pack` writes
MAX_HEADER = 4096       # bytes; those of plain arrays have 128
_MAX_DIMENSIONS = 8


def read_array(data: bytes, key: str | None, most: int) -> np.ndarray:
    """The array of an npy or npz file: [C, H, W], where [H, W] counts as one channel; a view of `data` for npy.

    Args:
        key: name of the array in an npz file; None: it must hold only one.
        most: bytes that its values may have.

    Raises:
        ValueError: with the reason, when there is no such array.
    """
    try:
        values = parse_npy(_member(data, key, most) if data[:2] == b"PK" else data, most)
    except MemoryError:
        raise
    except Exception as error:  # zipfile and NumPy raise nearly every kind on damaged bytes
        raise ValueError(str(error) or type(error).__name__) from None
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3:
        raise ValueError(f"an array of shape {list(values.shape)} instead of [C, H, W] or [H, W]")
    return values


def array_names(data: bytes) -> list[str]:
    """The names of the arrays of an npz file; empty for another file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _names(archive)
    except Exception:  # as in read_array
        return []


def encode_array(values: np.ndarray, encoding: str) -> bytes:
    """The bytes of an npy or npz file of an array [C, H, W]. The same array gives the same bytes (npz: with one zlib)."""
    content = usual_header(values.dtype.name, values.shape) + values.astype(values.dtype.newbyteorder("<")).tobytes()
    if encoding == "npy":
        return content
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo(f"{PACKED_KEY}.npy")  # its time is 1980 whenever it is made
        archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


@lru_cache(maxsize=16)
def usual_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of the npy files that `pack` and NumPy write."""
    file = io.BytesIO()
    fields = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _member(data: bytes, key: str | None, most: int) -> bytes:
    """The npy file in an npz file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = _names(archive)
        if key is None and len(names) != 1:
            raise ValueError(f"the arrays {', '.join(map(repr, names[:8]))}, of which one must be named")
        key = names[0] if key is None else key
        if key not in names:
            raise ValueError(f"no array {key!r}; it holds {', '.join(map(repr, names[:8])) or 'nothing'}")
        return read_member(archive, archive.getinfo(f"{key}.npy"), most + MAX_HEADER)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int, first: int | None = None) -> bytes:
    """A member of a zip file, checked against its CRC-32; or its first bytes, unchecked.

    Raises:
        ValueError: it has more bytes than `most`, is encrypted, or is compressed by a method whose output has no bound.
        Exception: nearly any kind, where the bytes are damaged.
    """
    if max(info.file_size, info.compress_size) > most:
        raise ValueError(f"{info.file_size} bytes are more than the limit of {most}")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("encrypted, or compressed by another method than deflate")
    with archive.open(info) as file:
        # Without the number it would unpack everything, whatever is promised.
        data = file.read(info.file_size if first is None else first)
    if first is None and len(data) != info.file_size:
        raise ValueError(f"{len(data)} bytes instead of {info.file_size}")
    return data


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
