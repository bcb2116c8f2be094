"""Where the files of a source lie: a folder, a zip, one tar or several. Each is listed once and then read by name.

A listing counts every file that it meets: it is named, or left out with a reason.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular
from stylegan_dist.making.tar import BLOCK, Member, TarError, is_tar, members

# No image within Pillow's pixel limit needs more, so a larger member of a zip is a mistake or a bomb.
MAX_FILE_BYTES = 512 << 20
_HEAD = 64  # bytes that tell what a file is
# A member's local header (PKWARE APPNOTE, section 4.3.7): signature, ..., lengths of the name and the extra field.
_ZIP_HEADER = struct.Struct("<4s22xHH")
_ZIP_SIGNATURE = b"PK\3\4"
_ZIP_STARTS = (_ZIP_SIGNATURE, b"PK\5\6")  # the second of one without members
_ZIP_ENCRYPTED = 1
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard",
               b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR", b"\x04\x22\x4d\x18": "LZ4"}
_OPEN_TAPES = 64
HIDDEN = "hidden or left behind by a system"
REPLACED = "replaced by a later file of the same name"
NOT_FILES = "pipes, sockets, devices, or links in a circle"


class Folder:
    """The files of a folder and its sub-folders, symbolic links followed."""

    def __init__(self, path: Path):
        self.path = path
        self.met = 0
        self.left_out: dict[str, str] = {}  # name -> reason
        self._versions: dict[str, str] = {}

    def list(self) -> dict[str, str]:
        """Every file: name -> what tells one version of it from another (its size)."""
        self._versions = dict(self._walk(self.path, "", set()))
        return self._versions

    def state(self, names: Iterable[str]) -> str:
        """Of files: two equal ones say that nothing has touched them between the calls."""
        return _state_of(self.path / name for name in names)

    def _walk(self, folder: Path, prefix: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                try:
                    status = entry.stat()
                except OSError:  # a dangling link: listed, so that reading it is reported
                    if not _is_hidden(entry.name):
                        self.met += 1
                        yield name, "missing"
                        continue
                if _is_hidden(entry.name):
                    self.met += 1
                    self.left_out[name] = HIDDEN
                elif stat.S_ISDIR(status.st_mode):
                    if (status.st_dev, status.st_ino) in above | {identity}:  # a link to a folder that holds it
                        self.met += 1
                        self.left_out[name] = NOT_FILES
                    else:
                        yield from self._walk(folder / entry.name, f"{name}/", above | {identity})
                else:
                    self.met += 1
                    if stat.S_ISREG(status.st_mode):
                        yield name, str(status.st_size)
                    else:
                        self.left_out[name] = NOT_FILES

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises ValueError with the reason when they cannot be had."""
        try:
            with open_regular(self.path / name) as file:
                size = os.fstat(file.fileno()).st_size
                if size > MAX_FILE_BYTES:
                    raise ValueError(f"{size} bytes are more than the limit of {MAX_FILE_BYTES}")
                data = file.read(size + 1)
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from None
        if str(len(data)) != self._versions[name]:
            raise ValueError(f"it has changed: {len(data)} bytes, {self._versions[name]} when the source was listed")
        return data

    def head(self, name: str) -> bytes:
        """The first bytes of a file; none where they cannot be had."""
        try:
            with open_regular(self.path / name) as file:
                return file.read(_HEAD)
        except OSError:
            return b""

    def inside(self, name: str) -> str:
        """The path of a file inside what it lies in."""
        return name


class Archive:
    """The members of a zip file. Their names are only looked up here and never become paths.

    The table of contents is parsed once, by `list`; workers read members by their place in the file, which
    costs a fifth of `ZipFile.read` and needs no file position, so forked workers can share the open file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.met = 0
        self.left_out: dict[str, str] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._file: BinaryIO | None = None

    def list(self) -> dict[str, str]:
        """Every file: name -> what tells one version of it from another (its size and CRC-32)."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = archive.infolist()
        except OSError:
            raise
        except Exception as error:  # zipfile has many kinds for damaged bytes
            raise InputError(f"{self.path} cannot be read: {error}") from None
        first = min((info.header_offset for info in members), default=0)  # a folder, where whole folders were archived
        if first and self._begins_with_a_member():  # `cat a.zip b.zip`: the table of contents at the end names those of b only
            raise InputError(f"{self.path} cannot be read: {first} bytes before its first file are not in its table of "
                             "contents, as where several zips were joined: unpack each into one folder, and give that")
        infos = [info for info in members if not info.is_dir()]
        self.met = len(infos)
        for number, info in enumerate(infos):
            _place(info.filename, info, number, self._members, self.left_out)
        return {name: f"{info.file_size}:{info.CRC}" for name, info in self._members.items()}

    def _begins_with_a_member(self) -> bool:
        with open_regular(self.path) as file:
            return file.read(len(_ZIP_SIGNATURE)) == _ZIP_SIGNATURE

    def state(self, names: Iterable[str]) -> str:
        """Two equal ones say that nothing has touched the file between the calls."""
        return _state_of([self.path])

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises ValueError with the reason when they cannot be had."""
        info = self._members[name]
        data = self._read(info, info.file_size, info.compress_size)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise ValueError("the CRC-32 or the header in the zip is wrong")
        return data

    def _read(self, info: zipfile.ZipInfo, most: int, stored: int) -> bytes:
        """The first bytes of a member, `most` and one more at most, from as many `stored` ones."""
        if max(info.file_size, info.compress_size) > MAX_FILE_BYTES:
            raise ValueError(f"{info.file_size} bytes are more than the limit of {MAX_FILE_BYTES}")
        if info.flag_bits & _ZIP_ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("encrypted, or compressed by another method than deflate")
        try:
            if self._file is None:
                self._file = open_regular(self.path)
            header = os.pread(self._file.fileno(), _ZIP_HEADER.size, info.header_offset)
            signature, name_bytes, extra_bytes = _ZIP_HEADER.unpack(header)
            start = info.header_offset + _ZIP_HEADER.size + name_bytes + extra_bytes
            data = os.pread(self._file.fileno(), stored, start)
            if info.compress_type == zipfile.ZIP_DEFLATED:  # never to more than the size that was just checked
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most + 1)
        except (OSError, OverflowError, struct.error, zlib.error) as error:
            raise ValueError(str(error)) from None
        if signature != _ZIP_SIGNATURE:
            raise ValueError("the CRC-32 or the header in the zip is wrong")
        return data

    def head(self, name: str) -> bytes:
        """The first bytes of a member; none where they cannot be had."""
        info = self._members[name]
        try:
            return self._read(info, _HEAD, min(info.compress_size, 4 * _HEAD))[:_HEAD]
        except ValueError:
            return b""

    def inside(self, name: str) -> str:
        """The path of a file inside what it lies in."""
        return name

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}


class Tape:
    """The members of uncompressed tar files. Their names are only looked up here and never become paths.

    Of several files each member's name begins with that of its file.
    """

    def __init__(self, paths: list[Path], named: bool = False):
        self.paths = paths
        self.met = 0
        self.left_out: dict[str, str] = {}
        self._named = named
        self._members: dict[str, tuple[int, Member]] = {}
        self._open: dict[int, BinaryIO] = {}

    def list(self) -> dict[str, str]:
        """Every file: name -> what tells one version of it from another (its size)."""
        for number, path in enumerate(self.paths):
            prefix = f"{path.name}/" if self._named else ""
            try:
                with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    for member in members(content):
                        name = prefix + member.name.removeprefix("./")
                        _place(name, (number, member), self.met, self._members, self.left_out)
                        self.met += 1
            except TarError as error:
                raise InputError(f"{path} cannot be read: {error}, byte {error.offset}; restore it, or leave it out") from None
            except ValueError as error:  # an empty file cannot be mapped
                raise InputError(f"{path} cannot be read: {error}; restore it, or leave it out") from None
        return {name: str(member.bytes) for name, (_, member) in self._members.items()}

    def state(self, names: Iterable[str]) -> str:
        """Two equal ones say that nothing has touched the files between the calls."""
        return _state_of(self.paths)

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises ValueError with the reason when they cannot be had."""
        member = self._members[name][1]
        if member.bytes < 0:
            raise ValueError("a link to elsewhere, a device, a pipe or a sparse file, not a plain file")
        if member.bytes > MAX_FILE_BYTES:
            raise ValueError(f"{member.bytes} bytes are more than the limit of {MAX_FILE_BYTES}")
        data = self._read(name, member.bytes)
        if len(data) != member.bytes:
            raise ValueError("the tar file ends inside it")
        return data

    def _read(self, name: str, most: int) -> bytes:
        number, member = self._members[name]
        try:
            if number not in self._open:
                if len(self._open) >= _OPEN_TAPES:
                    self._open.pop(next(iter(self._open))).close()
                self._open[number] = open_regular(self.paths[number])
            return os.pread(self._open[number].fileno(), most, member.offset)
        except OSError as error:
            raise ValueError(str(error)) from None

    def head(self, name: str) -> bytes:
        """The first bytes of a member; none where they cannot be had."""
        try:
            return self._read(name, max(0, min(_HEAD, self._members[name][1].bytes)))
        except ValueError:
            return b""

    def inside(self, name: str) -> str:
        """The path of a file inside what it lies in."""
        return name.partition("/")[2] if self._named else name

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


Files: TypeAlias = Folder | Archive | Tape


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
    raise InputError(f"{path} is neither a folder nor a zip or tar: give a folder, a zip or a tar of samples")


def packed_kind(start: bytes) -> str | None:
    """Of a file that is no tar and begins with these bytes: what it is packed or compressed with, where that is known."""
    if start.startswith(_ZIP_STARTS):
        return "zip"
    return next((kind for first, kind in _COMPRESSED.items() if start.startswith(first)), None)


def _place(name: str, entry, number: int, kept: dict, left_out: dict[str, str]) -> None:
    """Keep a member under its name, or leave it out; the last one of a name counts, as for those who unpack it."""
    if any(map(_is_hidden, name.split("/"))):
        left_out[f"{name} [{number}]" if name in left_out else name] = HIDDEN
        return
    if name in kept:
        left_out[f"{name} [{number}]" if name in left_out else name] = REPLACED
    kept[name] = entry


def _is_hidden(part: str) -> bool:
    """Files that systems leave behind: .DS_Store, ._photo.jpg, __MACOSX."""
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


def _state_of(paths: Iterable[Path]) -> str:
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
