"""Files that hold pickles: a pickle itself, and what `torch.save` writes, old (a stream) and new (a zip archive)."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stylegan_dist.files import regular_descriptor
from stylegan_dist.importing.machine import Blob, Budget, Machine, Refused
from stylegan_dist.importing.values import Name, Storage, Vocabulary
from stylegan_dist.records import shorten

MOST_BYTES = 1 << 36           # of a file, 64 GiB
MOST_MEMBERS = 100_000         # of an archive
MOST_PICKLE = 1 << 28          # bytes of data.pkl
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # at the beginning of a stream of torch.save
_STREAM = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."
_ZIP = b"PK\x03\x04"

PICKLE, STREAM, ARCHIVE = "pickle", "torch.save stream", "torch.save archive"


class Container:
    """An open file.

    Attributes:
        form: PICKLE, STREAM or ARCHIVE.
        size: bytes.
        root: its value, of inert objects. Tensors in it can be read as long as the container is open.
    Raises:
        OSError: it cannot be opened.
        Refused: it is none of these, is damaged, or holds what no network needs.
    """

    def __init__(self, path: Path):
        self._file: BinaryIO = open(regular_descriptor(path), "rb")  # noqa: SIM115 - `__exit__` closes it
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            if not 1 <= self.size <= MOST_BYTES:
                raise Refused(f"refused: {self.size} bytes are no checkpoint")
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self.data = memoryview(self._map)
            self.root = self._read()
        except BaseException:
            self._file.close()
            raise

    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read(self) -> Any:
        start = bytes(self.data[:len(_STREAM)])
        if start.startswith(_ZIP):
            self.form = ARCHIVE
            return read_archive(self._file, self.size)
        budget = Budget()
        if start == _STREAM:
            self.form = STREAM
            return read_stream(self.data, 0, self.size, budget)[0]
        if start[:1] != b"\x80":
            raise Refused("refused: it begins like no pickle of protocol 2 to 5 and no file of torch.save")
        self.form = PICKLE
        machine = Machine(self.data, 0, self.size, Vocabulary(_Streams(budget)), budget)
        return machine.load()


class _Streams:
    """Storages in the bytes of a pickle: each is a stream of its own. Bytes that are named twice are one storage."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._known: dict[Blob, Storage] = {}

    def __call__(self, machine: Machine, blob: Blob) -> Storage:
        if blob not in self._known:
            if bytes(machine.data[blob.start:min(blob.end, blob.start + len(_STREAM))]) != _STREAM:
                raise machine.refused("a storage that torch.save has not written")
            root, end = read_stream(machine.data, blob.start, blob.end, self._budget)
            if not isinstance(root, Storage) or end != blob.end:
                raise machine.refused("a storage that is something else")
            self._known[blob] = root
        return self._known[blob]


def read_stream(data: memoryview, start: int, end: int, budget: Budget) -> tuple[Any, int]:
    """Value and end of what `torch.save` writes without an archive: five pickles, then the numbers of the storages."""
    storages: dict[str, Storage] = {}

    def load(persistent: Callable[[Any, int], Any] | None = None) -> Any:
        nonlocal start
        machine = Machine(data, start, end, Vocabulary(), budget, persistent)
        value = machine.load()
        start = machine.position
        return value

    def storage(identity: Any, at: int) -> Storage:
        dtype, key, count, rest = _identity(identity, at)
        if rest not in ((), (None,)):
            raise Refused(f"refused: a storage inside another at byte {at}")
        return _noted(storages, key, Storage(dtype, count, lambda: b""), at)

    at = start
    if (load(), load()) != (_MAGIC, _PROTOCOL):
        raise Refused(f"refused: no stream of torch.save at byte {at}")
    system = load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused(f"refused: a stream of torch.save that is not little-endian at byte {at}")
    root = load(storage)
    keys = load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(keys) != len(storages) \
            or {*keys} != {*storages}:
        raise Refused(f"refused: a stream of torch.save without the storages that it names at byte {at}")
    for key in keys:
        found = storages[key]
        begin, size = start + 8, found.count * found.dtype.itemsize
        if begin + size > end or struct.unpack("<q", data[start:begin])[0] != found.count:
            raise Refused(f"refused: a storage of {found.count} numbers at byte {start}, which are not there")
        start = begin + size
        found.read = partial(_slice, data, begin, start)
    return root, start


def _slice(data: memoryview, start: int, end: int) -> memoryview:
    return data[start:end]


def _noted(storages: dict[str, Storage], key: str, storage: Storage, at: int) -> Storage:
    """The storage of a key, which may be named more than once."""
    known = storages.setdefault(key, storage)
    if (known.dtype, known.count) != (storage.dtype, storage.count):
        raise Refused(f"refused: two storages of one name at byte {at}")
    return known


def _identity(identity: Any, at: int) -> tuple[torch.dtype, str, int, tuple]:
    """Type, key and number of numbers of a storage, and what else is said of it."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise Refused(f"refused: a persistent id that is no storage at byte {at}")
    _, kind, key, _, count, *rest = identity
    dtype = kind.value if isinstance(kind, Name) else None
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(count) is not int or not 0 <= count < 1 << 48:
        raise Refused(f"refused: an odd storage at byte {at}")
    return dtype, key, count, tuple(rest)


def read_archive(file: BinaryIO, size: int) -> Any:
    """The value of a zip archive of `torch.save`: FOLDER/data.pkl, and FOLDER/data/KEY for each storage.

    Names in it are only compared, and nothing is unpacked to a disk. Members must be stored without compression, as
    `torch.save` does, so that they cannot be larger than the file.
    """
    try:
        archive = zipfile.ZipFile(file)
        members = {member.filename: member for member in archive.infolist()}
    except Exception as error:  # zipfile raises errors of many kinds on damaged files
        raise Refused(f"refused: a damaged archive ({type(error).__name__}: {shorten(str(error))})") from None
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(members) > MOST_MEMBERS or len(roots) != 1 or len(members) != len(archive.infolist()):
        raise Refused("refused: a zip archive that torch.save has not written")
    root, left = roots[0], 4 * size

    def read(name: str, wanted: int | None = None) -> bytes:
        nonlocal left
        member = members.get(name)
        if member is None or (wanted is not None and member.file_size != wanted):
            raise Refused(f"refused: the member {shorten(name)} is missing or has another size")
        most = MOST_PICKLE if wanted is None else size
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.file_size != member.compress_size \
                or member.file_size > min(most, size):
            raise Refused(f"refused: the member {shorten(name)} is compressed, encrypted or too large")
        left -= member.file_size
        if left < 0:  # a member that many tensors share, or members that share bytes
            raise Refused("refused: the archive's tensors are more than its bytes")
        try:
            return archive.read(member)
        except Exception as error:
            raise Refused(f"refused: the member {shorten(name)} is damaged ({shorten(str(error))})") from None

    if f"{root}byteorder" in members and read(f"{root}byteorder") != b"little":
        raise Refused("refused: an archive that is not little-endian")
    storages: dict[str, Storage] = {}

    def storage(identity: Any, at: int) -> Storage:
        dtype, key, count, _ = _identity(identity, at)
        content = partial(read, f"{root}data/{key}", count * dtype.itemsize)
        return _noted(storages, key, Storage(dtype, count, content), at)

    data = memoryview(read(f"{root}data.pkl"))
    value = Machine(data, 0, len(data), Vocabulary(), Budget(), storage).load()
    for key, one in storages.items():
        member = members.get(f"{root}data/{key}")
        if member is None or member.file_size != one.count * one.dtype.itemsize:
            raise Refused(f"refused: the archive has no {shorten(key)} of the size that it names")
    return value
