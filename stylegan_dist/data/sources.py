"""Reading a source of images: a folder or a zip, with or without labels.

A source is listed once and can then be read by name from any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stylegan_dist.errors import InputError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LABEL_MODES = ("auto", "folders", "json", "none")
LABEL_FILE = "dataset.json"
# No image within Pillow's pixel limit needs more, so a larger member of a zip is a mistake or a bomb.
MAX_FILE_BYTES = 512 << 20
# The class names are a list in index.json: a class number such as a time stamp must not fill the memory.
MAX_CLASSES = 1_000_000
# A member's local header (PKWARE APPNOTE, section 4.3.7): signature, ..., lengths of the name and the extra field.
_ZIP_HEADER = struct.Struct("<4s22xHH")
_ZIP_SIGNATURE = b"PK\3\4"
_ZIP_ENCRYPTED = 1


class Item(NamedTuple):
    """One image of a source."""

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


class Source(NamedTuple):
    """The images of a folder or a zip, in the order of their names."""

    items: list[Item]
    classes: list[str] | None    # class names in the order of their numbers; None: no labels
    sha256: str                  # over the names, sizes and labels: the same listing has the same value
    files: Folder | Archive

    def read(self, name: str) -> bytes:
        """The bytes of an item, in any process. Raises ValueError with the reason when they cannot be had."""
        return self.files.read(name)


def open_source(path: str | os.PathLike, labels: str = "auto") -> Source:
    """List the images of a folder or a zip.

    Args:
        path: a folder (searched with its sub-folders) or a zip. Hidden files are left out.
        labels: where the classes come from: "json" (`dataset.json` at the top of the source), "folders"
            (the first-level sub-folder, classes numbered in the order of their names), "none", or "auto"
            (`dataset.json` if there is one with labels, else none).

    Raises:
        InputError: nothing there, no image in it, or labels that are missing or of a wrong form.
    """
    path = Path(path)
    if labels not in LABEL_MODES:
        raise InputError(f"labels must be one of {', '.join(LABEL_MODES)}, not {labels!r}")
    try:
        if path.is_dir():
            files: Folder | Archive = Folder(path)
        elif path.is_file() and zipfile.is_zipfile(path):
            files = Archive(path)
        elif path.exists():
            raise InputError(f"{path} is neither a folder nor a zip: give a folder of images or a zip of images")
        else:
            raise InputError(f"{path} does not exist: give a folder of images or a zip of images")
        listing = files.list()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    names = sorted(name for name in listing if name.lower().endswith(IMAGE_ENDINGS))
    if not names:
        raise InputError(f"{path} holds no image ({', '.join(IMAGE_ENDINGS)}): is it the right folder or zip?")

    if labels == "folders":
        numbers, classes = _labels_from_folders(names, path)
    elif labels == "none":
        numbers, classes = None, None
    else:
        numbers, classes = _labels_from_json(files, listing, names, path)
        if labels == "json" and numbers is None:
            raise InputError(f"{path} has no {LABEL_FILE} with labels at its top: choose --labels folders or none")
    items = [Item(name, None if numbers is None else numbers[name]) for name in names]
    rows = [[item.name, listing[item.name], item.label] for item in items]
    digest = hashlib.sha256(json.dumps([classes, rows]).encode()).hexdigest()
    return Source(items, classes, digest, files)


def _is_hidden(part: str) -> bool:
    """Files that systems leave behind: .DS_Store, ._photo.jpg, __MACOSX."""
    return part.startswith(".") or part == "__MACOSX"


def _labels_from_folders(names: list[str], path: Path) -> tuple[dict[str, int], list[str]]:
    for name in names:
        if "/" not in name:
            raise InputError(
                f"--labels folders needs every image in a sub-folder, but {name!r} lies at the top of {path}: "
                "move it into the folder of its class, or choose --labels none"
            )
    classes = sorted({name.split("/", 1)[0] for name in names})
    numbers = {name: number for number, name in enumerate(classes)}
    return {name: numbers[name.split("/", 1)[0]] for name in names}, classes


def _labels_from_json(
    files: Folder | Archive, listing: dict[str, str], names: list[str], path: Path
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
            raise InputError(f"{where} has no label for {name!r}: label every image, or choose --labels none")
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
