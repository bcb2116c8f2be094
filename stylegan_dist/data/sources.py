"""Reading a source of samples: a folder, a zip or a tar, with or without labels.

A source is listed once and can then be read by name from any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from stylegan_dist.data import storage
from stylegan_dist.data.tar import Member, TarError, members
from stylegan_dist.errors import InputError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ARRAY_ENDINGS = (".npy", ".npz")
SOUND_ENDINGS = (".wav", ".wave")
LABEL_MODES = ("auto", "folders", "names", "json", "none")
LABEL_FILE = "dataset.json"
# No image within Pillow's pixel limit needs more, so a larger member of a zip is a mistake or a bomb.
MAX_FILE_BYTES = 512 << 20
# The class names are a list in index.json: a class number such as a time stamp must not fill the memory.
MAX_CLASSES = 1_000_000
# A member's local header (PKWARE APPNOTE, section 4.3.7): signature, ..., lengths of the name and the extra field.
_ZIP_HEADER = struct.Struct("<4s22xHH")
_ZIP_SIGNATURE = b"PK\3\4"
_ZIP_ENCRYPTED = 1
_COMPRESSED = (b"\x1f\x8b", b"BZ", b"\xfd7")  # gzip, bzip2, xz: what tarfile opens, too


class Item(NamedTuple):
    """One file of a source that becomes a sample."""

    name: str            # path inside the source, with forward slashes
    label: int | None


class Folder:
    """The files of a folder and its sub-folders, symbolic links followed."""

    def __init__(self, path: Path):
        self.path = path

    def list(self) -> dict[str, str]:
        """Every file: name -> what tells one version of it from another (its size)."""
        return dict(self._walk(self.path, "", set()))

    def _walk(self, folder: Path, prefix: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # a link to a folder that holds it
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:  # a dangling link: listed, so that reading it is reported
                    yield prefix + entry.name, "missing"
                    continue
                if stat.S_ISDIR(status.st_mode):
                    yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/", above | {identity})
                elif stat.S_ISREG(status.st_mode):
                    yield prefix + entry.name, str(status.st_size)

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises ValueError with the reason when they cannot be had."""
        path = self.path / name
        try:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise ValueError(f"{size} bytes are more than the limit of {MAX_FILE_BYTES}")
            return path.read_bytes()
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from None


class Archive:
    """The members of a zip file. Their names are only looked up here and never become paths.

    The table of contents is parsed once, by `list`; workers read members by their place in the file, which
    costs a fifth of `ZipFile.read` and needs no file position, so forked workers can share the open file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._file: BinaryIO | None = None

    def list(self) -> dict[str, str]:
        """Every file: name -> what tells one version of it from another (its size and CRC-32)."""
        with zipfile.ZipFile(self.path) as archive:
            self._members = {
                info.filename: info for info in archive.infolist()
                if not info.is_dir() and not any(map(_is_hidden, info.filename.split("/")))
            }
        return {name: f"{info.file_size}:{info.CRC}" for name, info in self._members.items()}

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises ValueError with the reason when they cannot be had."""
        info = self._members[name]
        if max(info.file_size, info.compress_size) > MAX_FILE_BYTES:
            raise ValueError(f"{info.file_size} bytes are more than the limit of {MAX_FILE_BYTES}")
        if info.flag_bits & _ZIP_ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("encrypted, or compressed by another method than deflate")
        try:
            if self._file is None:
                self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (kept open)
            header = os.pread(self._file.fileno(), _ZIP_HEADER.size, info.header_offset)
            signature, name_bytes, extra_bytes = _ZIP_HEADER.unpack(header)
            start = info.header_offset + _ZIP_HEADER.size + name_bytes + extra_bytes
            data = os.pread(self._file.fileno(), info.compress_size, start)
            if info.compress_type == zipfile.ZIP_DEFLATED:  # never to more than the size that was just checked
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, info.file_size + 1)
        except (OSError, struct.error, zlib.error) as error:
            raise ValueError(str(error)) from None
        if signature != _ZIP_SIGNATURE or len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise ValueError("the CRC-32 or the header in the zip is wrong")
        return data

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}


class Tape:
    """The members of an uncompressed tar file. Their names are only looked up here and never become paths."""

    def __init__(self, path: Path):
        self.path = path
        self._members: dict[str, Member] = {}
        self._file: BinaryIO | None = None

    def list(self) -> dict[str, str]:
        """Every file: name -> what tells one version of it from another (its size)."""
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:2] in _COMPRESSED:
                raise InputError(f"{self.path} is compressed: unpack it, or give it as a plain tar")
            self._members = {member.name.removeprefix("./"): member for member in members(content)}
        return {name: str(member.bytes) for name, member in self._members.items()
                if not any(map(_is_hidden, name.split("/")))}

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises ValueError with the reason when they cannot be had."""
        member = self._members[name]
        if member.bytes < 0:
            raise ValueError("a link to elsewhere, a device or a pipe, not a file")
        if member.bytes > MAX_FILE_BYTES:
            raise ValueError(f"{member.bytes} bytes are more than the limit of {MAX_FILE_BYTES}")
        try:
            if self._file is None:
                self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (kept open)
            data = os.pread(self._file.fileno(), member.bytes, member.offset)
        except OSError as error:
            raise ValueError(str(error)) from None
        if len(data) != member.bytes:
            raise ValueError("the tar file ends inside it")
        return data

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}


Files: TypeAlias = Folder | Archive | Tape


class Listing(NamedTuple):
    """All files of a folder, a zip or a tar."""

    files: Files
    names: dict[str, str]        # and what tells one version of a file from another


class Source(NamedTuple):
    """The samples of a folder, a zip or a tar, in the order of their names."""

    items: list[Item]
    classes: list[str] | None    # class names in the order of their numbers; None: no labels
    sha256: str                  # over the names, sizes and labels: the same listing has the same value
    files: Files

    def read(self, name: str) -> bytes:
        """The bytes of an item, in any process. Raises ValueError with the reason when they cannot be had."""
        return self.files.read(name)


def open_source(path: str | os.PathLike, labels: str = "auto", endings: Sequence[str] = IMAGE_ENDINGS,
                noun: str = "images", listing: Listing | None = None) -> Source:
    """List the files of a folder, a zip or a tar that become samples.

    Args:
        path: a folder (searched with its sub-folders), a zip or a tar. Hidden files are left out.
        listing: of it, where it is known already.
        endings: of the files that are taken, lower case.
        noun: what these are, for messages.
        labels: where the classes come from: "json" (`dataset.json` at the top of the source), "folders"
            (the first-level sub-folder, classes numbered in the order of their names), "names" (what a file's name
            begins with, up to the first "_" or "-"; whole numbers in their order), "none", or "auto" (`dataset.json`
            if there is one with labels, else none).

    Raises:
        InputError: nothing there, no such file in it, or labels that are missing or of a wrong form.
    """
    if labels not in LABEL_MODES:
        raise InputError(f"labels must be one of {', '.join(LABEL_MODES)}, not {labels!r}")
    files, listed = listing or list_source(path)
    path = Path(path)
    names = sorted(name for name in listed if name.lower().endswith(tuple(endings)))
    if not names:
        raise InputError(f"{path} holds no {noun} ({', '.join(endings)}): is it the right place?")

    if labels == "folders":
        numbers, classes = _labels_from_folders(names, path)
    elif labels == "names":
        numbers, classes = _labels_from_names(names)
    elif labels == "none":
        numbers, classes = None, None
    else:
        numbers, classes = _labels_from_json(files, listed, names, path)
        if labels == "json" and numbers is None:
            raise InputError(f"{path} has no {LABEL_FILE} with labels at its top: choose --labels folders or none")
    items = [Item(name, None if numbers is None else numbers[name]) for name in names]
    rows = [[item.name, listed[item.name], item.label] for item in items]
    digest = hashlib.sha256(json.dumps([classes, rows]).encode()).hexdigest()
    return Source(items, classes, digest, files)


def list_source(path: str | os.PathLike) -> Listing:
    """List a folder, a zip or a tar.

    Raises:
        InputError: nothing there, or it cannot be read.
    """
    with _readable(path) as files:
        return Listing(files, files.list())


def kind_of(listing: Listing) -> str:
    """What a source holds: "images" if there is any, else "arrays" or "sounds"; "images" if there is nothing of these."""
    found = {os.path.splitext(name)[1].lower() for name in listing.names}
    kinds = {"images": IMAGE_ENDINGS, "arrays": ARRAY_ENDINGS, "sounds": SOUND_ENDINGS}
    return next((kind for kind, endings in kinds.items() if found.intersection(endings)), "images")


@contextmanager
def _readable(place: str | os.PathLike) -> Iterator[Files]:
    """The source at a path; what goes wrong while it is listed becomes an InputError."""
    storage.check_is_local("SOURCE", place)
    path = Path(place)
    try:
        if path.is_dir():
            yield Folder(path)
        elif path.is_file() and zipfile.is_zipfile(path):
            yield Archive(path)
        elif path.is_file() and tarfile.is_tarfile(path):
            yield Tape(path)
        elif path.exists():
            raise InputError(f"{path} is neither a folder nor a zip or tar: give a folder, a zip or a tar of samples")
        else:
            raise InputError(f"{path} does not exist: give a folder, a zip or a tar of samples")
    except (OSError, zipfile.BadZipFile, TarError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _is_hidden(part: str) -> bool:
    """Files that systems leave behind: .DS_Store, ._photo.jpg, __MACOSX."""
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


def _labels_from_folders(names: list[str], path: Path) -> tuple[dict[str, int], list[str]]:
    for name in names:
        if "/" not in name:
            raise InputError(
                f"--labels folders needs every file in a sub-folder, but {name!r} lies at the top of {path}: "
                "move it into the folder of its class, or choose --labels none"
            )
    classes = sorted({name.split("/", 1)[0] for name in names})
    numbers = {name: number for number, name in enumerate(classes)}
    return {name: numbers[name.split("/", 1)[0]] for name in names}, classes


def _labels_from_names(names: list[str]) -> tuple[dict[str, int], list[str]]:
    beginnings = {name: re.split("[_-]", os.path.splitext(name.rpartition("/")[2])[0])[0] for name in names}
    found = set(beginnings.values())
    classes = sorted(found, key=int) if all(map(str.isdecimal, found)) else sorted(found)
    if len(classes) == len(names) > 1:
        raise InputError(f"--labels names finds a class of its own in each file, such as {classes[0]!r} in {names[0]!r}: name "
                         "the files CLASS_ANYTHING, or choose --labels folders or none")
    numbers = {name: number for number, name in enumerate(classes)}
    return {name: numbers[beginning] for name, beginning in beginnings.items()}, classes


def _labels_from_json(
    files: Files, listing: dict[str, str], names: list[str], path: Path
) -> tuple[dict[str, int] | None, list[str] | None]:
    if LABEL_FILE not in listing:
        return None, None
    where = f"{LABEL_FILE} of {path}"
    try:
        content = json.loads(files.read(LABEL_FILE))
    except ValueError as error:
        raise InputError(f"{where} cannot be read ({error}): repair it, or choose --labels folders or none") from None
    labels = content.get("labels") if isinstance(content, dict) else content
    if labels is None:
        return None, None
    try:
        pairs = dict(labels)  # a list of pairs, or a dict
    except (TypeError, ValueError):
        raise InputError(f'{where}: "labels" must be a list of [name, class] pairs, a dict, or null') from None

    numbers = {}
    for name in names:
        if name not in pairs:
            raise InputError(f"{where} has no label for {name!r}: label every file, or choose --labels none")
        label = pairs[name]
        if isinstance(label, list):
            raise InputError(
                f"{where} gives {name!r} a list of numbers; only integer class numbers are supported: "
                "replace the lists by class numbers, or choose --labels folders or none"
            )
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < MAX_CLASSES:
            raise InputError(f"{where} gives {name!r} the class {label!r}, not an integer from 0 to {MAX_CLASSES - 1}")
        numbers[name] = label
    return numbers, [str(number) for number in range(max(numbers.values()) + 1)]
