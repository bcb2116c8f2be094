"""Where the files of a source lie: a folder, a zip, one tar or several. Each is listed once and then read by name.

A listing counts every file that it meets: it is named, or left out with a reason.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import mmap
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular
from stylegan_dist.kinds.npy import read_member
from stylegan_dist.making.tar import BLOCK, Member, TarError, is_tar, members

# No image within Pillow's pixel limit needs more, so a larger member of a zip is a mistake or a bomb.
MAX_FILE_BYTES = 512 << 20
_HEAD = 64  # bytes that tell what a file is
_ZIP_SIGNATURE = b"PK\3\4"
_ZIP_STARTS = (_ZIP_SIGNATURE, b"PK\5\6")  # the second of one without members
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard",
               b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR", b"\x04\x22\x4d\x18": "LZ4"}
_OPEN_TAPES = 64
HIDDEN = "hidden or left behind by a system"
REPLACED = "replaced by a later file of the same name"
NOT_FILES = "pipes, sockets, devices, or links in a circle"


class Files(ABC):
    """The files of a source. Their names are only looked up here; those of archives never become paths."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.met = 0                        # files
        self.left_out: dict[str, str] = {}  # name -> reason

    @abstractmethod
    def list(self) -> dict[str, str]:
        """Every file: name -> what tells one version of it from another (its size, in a zip also its CRC-32)."""

    @abstractmethod
    def _read(self, name: str, most: int | None) -> bytes:
        """The bytes of a file; `most`: the first ones, and no complaint about the others. Raises ValueError."""

    def read(self, name: str) -> bytes:
        """The bytes of a file, in any process. Raises ValueError with the reason when they cannot be had."""
        return self._read(name, None)

    def head(self, name: str) -> bytes:
        """The first bytes of a file; none where they cannot be had."""
        try:
            return self._read(name, _HEAD)
        except ValueError:
            return b""

    def inside(self, name: str) -> str:
        """The path of a file inside what it lies in."""
        return name

    def state(self, names: Iterable[str]) -> str:
        """Two equal ones say that nothing has touched these files between the calls."""
        return state_of(self.paths)

    def _place(self, name: str, entry, number: int, members: dict) -> None:
        """Keep a member under its name, or leave it out; the last one of a name counts, as for those who unpack it."""
        hidden = any(map(_is_hidden, name.split("/")))
        if hidden or name in members:
            self.left_out[f"{name} [{number}]" if name in self.left_out else name] = HIDDEN if hidden else REPLACED
        if not hidden:
            members[name] = entry


class Folder(Files):
    """The files of a folder and its sub-folders, symbolic links followed."""

    def __init__(self, path: Path):
        super().__init__([path])
        self.path = path
        self._versions: dict[str, str] = {}

    def list(self) -> dict[str, str]:
        self._versions = dict(self._walk(self.path, "", set()))
        return self._versions

    def state(self, names: Iterable[str]) -> str:
        return state_of(self.path / name for name in names)

    def _walk(self, folder: Path, prefix: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
        status = os.stat(folder)
        inner = above | {(status.st_dev, status.st_ino)}
        with os.scandir(folder) as entries:
            for entry in entries:
                name, hidden = prefix + entry.name, _is_hidden(entry.name)
                found: os.stat_result | None = None
                with contextlib.suppress(OSError):
                    found = entry.stat()
                if found and stat.S_ISDIR(found.st_mode) and not hidden and (found.st_dev, found.st_ino) not in inner:
                    yield from self._walk(folder / entry.name, f"{name}/", inner)
                    continue
                self.met += 1
                if hidden:
                    self.left_out[name] = HIDDEN
                elif found is None:  # a dangling link: listed, so that reading it is reported
                    yield name, "missing"
                elif stat.S_ISREG(found.st_mode):
                    yield name, str(found.st_size)
                else:  # or a link to a folder that holds it
                    self.left_out[name] = NOT_FILES

    def _read(self, name: str, most: int | None) -> bytes:
        try:
            with open_regular(self.path / name) as file:
                if most is not None:
                    return file.read(most)
                size = os.fstat(file.fileno()).st_size
                _check_size(size)
                data = file.read(size + 1)
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from None
        if str(len(data)) != self._versions[name]:
            raise ValueError(f"it has changed: {len(data)} bytes, {self._versions[name]} when the source was listed")
        return data


class _Positioned(io.RawIOBase):
    """A file with a position of its own in every process, so that forked workers can share it."""

    def __init__(self, path: Path):
        self._file, self._at = open_regular(path), 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = os.fstat(self._file.fileno()).st_size
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: end}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = position
        return position

    def read(self, size: int = -1) -> bytes:
        data = os.pread(self._file.fileno(), size if size >= 0 else os.fstat(self._file.fileno()).st_size, self._at)
        self._at += len(data)
        return data


class Archive(Files):
    """The members of a zip file."""

    def __init__(self, path: Path):
        super().__init__([path])
        self.path = path
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._archive: zipfile.ZipFile | None = None

    def list(self) -> dict[str, str]:
        try:
            listed = self._opened().infolist()
        except OSError:
            raise
        except Exception as error:  # zipfile has many kinds for damaged bytes
            raise InputError(f"{self.path} cannot be read: {error}") from None
        first = min((info.header_offset for info in listed), default=0)
        infos = [info for info in listed if not info.is_dir()]
        if first and self._begins_with_a_member():  # `cat a.zip b.zip`: the table of contents at the end names those of b only
            raise InputError(f"{self.path} cannot be read: {first} bytes before its first file are not in its table of "
                             "contents, as where several zips were joined: unpack each into one folder, and give that")
        self.met = len(infos)
        for number, info in enumerate(infos):
            self._place(info.filename, info, number, self._members)
        return {name: f"{info.file_size}:{info.CRC}" for name, info in self._members.items()}

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(_Positioned(self.path))  # type: ignore[arg-type]
        return self._archive

    def _begins_with_a_member(self) -> bool:
        with open_regular(self.path) as file:
            return file.read(len(_ZIP_SIGNATURE)) == _ZIP_SIGNATURE

    def _read(self, name: str, most: int | None) -> bytes:
        try:
            return read_member(self._opened(), self._members[name], MAX_FILE_BYTES, most)
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(str(error) or type(error).__name__) from None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}


class Tape(Files):
    """The members of uncompressed tar files. Of several files each member's name begins with that of its file."""

    def __init__(self, paths: list[Path], named: bool = False):
        super().__init__(paths)
        self._named = named
        self._members: dict[str, tuple[int, Member]] = {}
        self._open: dict[int, BinaryIO] = {}

    def list(self) -> dict[str, str]:
        for number, path in enumerate(self.paths):
            prefix = f"{path.name}/" if self._named else ""
            try:
                with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    for member in members(content):
                        self._place(prefix + member.name.removeprefix("./"), (number, member), self.met, self._members)
                        self.met += 1
            except ValueError as error:  # an empty file cannot be mapped
                where = f", byte {error.offset}" if isinstance(error, TarError) else ""
                raise InputError(f"{path} cannot be read: {error}{where}; restore it, or leave it out") from None
        return {name: str(member.bytes) for name, (_, member) in self._members.items()}

    def _read(self, name: str, most: int | None) -> bytes:
        number, member = self._members[name]
        if member.bytes < 0:
            raise ValueError("a link to elsewhere, a device, a pipe or a sparse file, not a plain file")
        if most is None:
            _check_size(member.bytes)
        try:
            if number not in self._open:
                if len(self._open) >= _OPEN_TAPES:
                    self._open.pop(next(iter(self._open))).close()
                self._open[number] = open_regular(self.paths[number])
            size = member.bytes if most is None else min(most, member.bytes)
            data = os.pread(self._open[number].fileno(), size, member.offset)
        except OSError as error:
            raise ValueError(str(error)) from None
        if most is None and len(data) != member.bytes:
            raise ValueError("the tar file ends inside it")
        return data

    def inside(self, name: str) -> str:
        return name.partition("/")[2] if self._named else name

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size} bytes are more than the limit of {MAX_FILE_BYTES}")


def open_container(path: Path) -> Files:
    """What a path is, by the beginning of the file: its end may look like something else.

    Raises:
        InputError: neither a folder nor a zip or tar.
        OSError: it cannot be read.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: give a folder, a zip or a tar of samples")
    if not path.is_file():
        raise InputError(f"{path} is a pipe, a socket or a device: give a folder, a zip or a tar of samples")
    with open_regular(path) as file:
        start = file.read(BLOCK)
    if is_tar(start):
        return Tape([path])
    if start.startswith(_ZIP_STARTS):
        return Archive(path)
    if kind := packed_kind(start):
        raise InputError(f"{path} is compressed: unpack it and give the folder, or a plain tar or zip (it begins like {kind})")
    if zipfile.is_zipfile(path):  # with something before it, such as a program that unpacks it
        return Archive(path)
    text = "; --text takes a file of text" if path.suffix.lower() in (".txt", ".md") else ""
    raise InputError(f"{path} is neither a folder nor a zip or tar: give a folder, a zip or a tar of samples{text}")


def packed_kind(start: bytes) -> str | None:
    """Of a file that is no tar and begins with these bytes: what it is packed or compressed with, where that is known."""
    if start.startswith(_ZIP_STARTS):
        return "zip"
    return next((kind for first, kind in _COMPRESSED.items() if start.startswith(first)), None)


def _is_hidden(part: str) -> bool:
    """Files that systems leave behind: .DS_Store, ._photo.jpg, __MACOSX."""
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


def state_of(paths: Iterable[Path]) -> str:
    """Over names, sizes and times, also those of the last change of the name or the mode, which nobody can set back."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            row = (path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:
            row = (path.name, -1, 0, 0)
        digest.update(repr(row).encode())
    return digest.hexdigest()
