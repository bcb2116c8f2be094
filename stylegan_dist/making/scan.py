"""An index for WebDataset shards that other tools made."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from stylegan_dist.data import storage
from stylegan_dist.data.index import INDEX_NAME, NO_LABEL, DatasetIndex, Shard
from stylegan_dist.errors import InputError
from stylegan_dist.files import file_digest, open_regular
from stylegan_dist.kinds import Image, Kind
from stylegan_dist.kinds.npy import ENCODINGS as ARRAY_ENCODINGS
from stylegan_dist.making import pool
from stylegan_dist.making.account import Account
from stylegan_dist.making.containers import HIDDEN, packed_kind
from stylegan_dist.making.labels import CLASS_BYTES, class_number
from stylegan_dist.making.survey import (
    ArraySurvey,
    ForeignArrays,
    ImageSurvey,
    common_array,
    common_form,
    survey_arrays,
    survey_images,
)
from stylegan_dist.making.tar import BLOCK, TarError, is_tar, key_and_ending, members

_ENDINGS = ("png", "jpg", "jpeg", "webp", *ARRAY_ENCODINGS)
_NOT_FILES = "links to elsewhere, devices, pipes or sparse files"


@dataclass(frozen=True)
class _Found:
    """What one shard turned out to hold."""

    table: np.ndarray                # int64 [samples, 3]: offset, bytes, class
    ending: str
    survey: ImageSurvey | ArraySurvey
    bytes: int
    sha256: str                      # "" where it was not asked for
    without_image: int               # keys that have other members only
    account: Account


def index_shards(source: str, out: str | None = None, *, checksums: bool = False, overwrite: bool = False,
                 workers: int | None = None, arrays: ForeignArrays | None = None) -> DatasetIndex:
    """Write `index.json` and the offsets files of a set of tar shards; the shards stay where and as they are.

    Args:
        source: a folder or URL with tar files, or a pattern of tar files with braces and wildcards.
        out: the folder for the index; None: the one that the shards are in, which must be local.
        checksums: store the SHA-256 of local shards, which are read whole for it. Shards of a URL are always read whole
            and have theirs stored; with this, it is one that the storage confirms or that two readings agree on.
        overwrite: replace an index that is there.
        workers: processes; None: one a core.
        arrays: how arrays are read, which is done wholly, for their values; None: their range becomes [-1, 1].

    Raises:
        InputError: nothing there, a damaged shard, or samples that are not of one form.
    """
    arrays = arrays or ForeignArrays()
    arrays.check()
    storage.check_location(source)
    if out is None and storage.is_remote(source):
        raise InputError(f"say where the index of {source} shall be: stylegan-dist index {source} FOLDER")
    locations = _tar_files(source)
    storage.check_driver(locations[0])  # here, not by whichever process is the first to miss it
    base = _common_folder(locations)
    if storage.is_remote(base) and base.partition("://")[0] not in storage.DRIVERS:
        raise InputError(f"an index cannot name shards at {base}, only in folders and at URLs such as "
                         f"{', '.join(f'{name}://' for name in storage.DRIVERS)}: fetch the shards, or put them there")
    folder = Path(out if out is not None else base)
    if (folder / INDEX_NAME).exists() and not overwrite:
        raise InputError(f"{folder} holds an index already: choose another folder, or replace it with --overwrite")

    names = [location[len(base):].lstrip("/") for location in locations]
    bar = pool.progress_bar(len(locations), "indexing", "shards")
    found: list[_Found] = pool.results(partial(_scan, checksums, arrays.key), locations, workers, bar)
    account = Account()
    for shard in found:
        account.add(shard.account)
    account.check()
    index = _index_of(found, names, locations, arrays)
    elsewhere = storage.is_remote(base) or folder.resolve() != Path(base)
    index = replace(index, packed_with={**index.packed_with, "account": account.record()},
                    shards_at=base if elsewhere else None)
    _write(folder, index, found)
    print("\n".join(account.lines()))
    return index


def _tar_files(source: str) -> list[str]:
    if not storage.is_remote(source):
        path = storage.local_path(source)
        if os.path.isfile(path):  # a name that is too long is not there, either
            return [str(path.resolve())]
        if os.path.isdir(path):  # whatever characters its name has
            if not (found := sorted(str(one) for one in path.glob("*.tar") if not one.name.startswith("._"))):
                raise InputError(f"{source} holds no .tar file: give the folder, the pattern or the URL of WebDataset shards")
            return [_plain_file(location, source) for location in found]
        if os.path.exists(path):
            raise InputError(f"{source} is a pipe, a socket or a device: give the folder, the pattern or the URL of shards")
        if not any(character in source for character in "*?[{"):
            raise InputError(f"{source} does not exist: give the folder, the pattern or the URL of WebDataset shards")
    pattern = source if source.endswith(".tar") else source.rstrip("/") + "/*.tar"
    locations = storage.expand(pattern)
    if not storage.is_remote(source):
        locations = [_plain_file(location, source) for location in locations]
    if len(set(locations)) < len(locations):
        raise InputError(f"{source} names a shard twice")
    return locations


def _plain_file(location: str, source: str) -> str:
    """The path of a local shard. Raises InputError where there is none."""
    if not os.path.isfile(location):
        what = "is no plain file" if os.path.lexists(location) else "is not there"
        raise InputError(f"{location} {what}: correct {source}, or leave it out")
    return str(Path(location).resolve())


def _common_folder(locations: list[str]) -> str:
    """The deepest folder, or URL of one, that all files are in."""
    scheme, colon, _ = locations[0].rpartition("://")
    return scheme + colon + os.path.commonpath([location.rpartition("://")[2].rpartition("/")[0] for location in locations])


def _scan(checksums: bool, array_key: str | None, slot: int, location: str, progress: pool.Progress) -> _Found:
    """In a worker: one shard."""
    if storage.is_remote(location):
        found = _scan_remote(location, checksums, array_key)
    else:
        try:
            found = _scan_file(Path(location), location, checksums, array_key)
        except TarError as error:
            where = f", member {error.name!r}" if error.name else ""
            raise InputError(f"{location}{where}, byte {error.offset}: {error}; restore the file, or leave it out") from None
    progress.done[slot] = 1
    return found


def _scan_remote(location: str, checksums: bool, array_key: str | None) -> _Found:
    """A shard of a URL. What arrives damaged is fetched again, as what does not arrive."""
    size, tag = storage.announced(location)
    found: list[_Found] = []
    seen: set[str] = set()

    def scan() -> None:
        storage.check_file(file.name, size)
        found[:] = [_scan_file(Path(file.name), location, True, array_key)]

    def scan_again() -> None:
        scan()
        if found[0].sha256 not in seen:
            seen.add(found[0].sha256)
            raise ValueError("no two readings have the same SHA-256: altered on the way")

    try:
        with tempfile.NamedTemporaryFile(prefix="stylegan-dist-index-") as file:
            storage.download(location, file.name, scan)
            if checksums and not _is_md5_of(tag, file.name):
                seen.add(found[0].sha256)
                storage.download(location, file.name, scan_again)
    except OSError as error:
        raise InputError(f"cannot write {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a folder with room for a "
                         "shard a process, or use fewer --workers") from None
    return found[0]


def _is_md5_of(tag: str, path: str) -> bool:
    """Whether an entity tag is the MD5 of a file, as that of an S3 object which was uploaded in one piece and not encrypted."""
    return bool(re.fullmatch("[0-9a-f]{32}", tag)) and file_digest(path, "md5") == tag


def _scan_file(path: Path, location: str, checksums: bool, array_key: str | None) -> _Found:
    """What a local file holds. Raises: TarError: it is damaged; InputError: it is not what can be indexed."""
    try:
        with open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise InputError(f"{location} is empty: restore it, or leave it out")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                start = content[:BLOCK]
                if not is_tar(start) and (kind := packed_kind(start)):
                    raise InputError(f"{location} is no tar, it begins like {kind}: unpack it, and index the tar or pack the "
                                     "images that were in it")
                return _scan_content(content, location, checksums, array_key)
    except OSError as error:
        raise InputError(f"cannot read {location}: {error.strerror}") from None


def _scan_content(content: mmap.mmap, location: str, checksums: bool, array_key: str | None) -> _Found:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, tuple[int, str]] = {}
    further: dict[str, str] = {}  # images whose names have more than one dot, by key
    keys, endings, account = set(), set(), Account()
    for name, offset, size in members(content):
        account.files += 1
        key, ending = key_and_ending(name)
        ending = ending.lower()
        if name.rpartition("/")[2].startswith("._"):
            account.leave_out(HIDDEN, [name])
            continue
        keys.add(key)
        if size < 0:
            account.leave_out(_NOT_FILES, [name])
        elif ending in _ENDINGS:
            if key in images:
                raise _twice(location, "image", key, name)
            images[key] = offset, size
            endings.add(ending)
        elif ending == "cls":
            if key in labels:
                raise _twice(location, "class", key, name)
            labels[key] = _class(content[offset:offset + min(size, CLASS_BYTES)], offset, name), name
        elif ending.rpartition(".")[2] in _ENDINGS:
            account.leave_out("further images of a sample, whose key ends at the first dot of its name", [name])
            further.setdefault(key, name)
        else:
            account.leave_out(f"no image or class (.{ending if len(ending) <= 8 else '...'})", [name])
    if lost := next((name for key, name in further.items() if key not in images), None):
        raise InputError(f"{location}: a key ends at the first dot of a name, so WebDataset sees no image in {lost!r}; "
                         "stylegan-dist pack takes every image, whatever its name")
    if not images:
        raise InputError(f"{location} holds no image or array ({', '.join(_ENDINGS)}): is it the right file?")
    if len(endings) > 1:
        raise InputError(f"{location} holds samples of several kinds ({', '.join(sorted(endings))}): pack them instead")
    missing = [key for key in images if key not in labels]
    if labels and missing:
        raise InputError(f"{location}: the sample {missing[0]!r} has no class (.cls) while others have one")
    account.leave_out("classes without an image", [name for key, (_, name) in labels.items() if key not in images])
    account.samples, account.labels = len(images), sum(key in images for key in labels)
    ending = endings.pop()
    survey: ImageSurvey | ArraySurvey
    if ending in ARRAY_ENCODINGS:
        survey = survey_arrays(content, images.values(), array_key)
    else:
        survey = survey_images(content, images.values())
    table = np.array([(*place, labels[key][0] if labels else NO_LABEL) for key, place in images.items()], dtype=np.int64)
    return _Found(table, ending, survey, len(content),
                  hashlib.sha256(content).hexdigest() if checksums else "", len(keys) - len(images), account)


def _twice(location: str, what: str, key: str, name: str) -> InputError:
    key = key.removeprefix("./")
    return InputError(f"{location}: {name!r} is a second {what} of the sample {key!r}: remove one of them, or pack the samples "
                      "instead (stylegan-dist pack), which takes every image, and of equal names the last")


def _class(text: bytes, offset: int, name: str) -> int:
    try:
        return class_number(text)
    except ValueError as error:
        raise TarError(str(error), offset, name) from None


def _index_of(found: list[_Found], names: list[str], locations: list[str], arrays: ForeignArrays) -> DatasetIndex:
    """The index, after a look whether the shards fit together."""
    def facts(shard: _Found) -> tuple:
        form = shard.survey.form if isinstance(shard.survey, ArraySurvey) else None
        return shard.ending, form, (shard.table[:, 2] >= 0).all()

    first = found[0]
    for shard, location in zip(found, locations, strict=True):
        for what, a, b in zip(("kinds", "sizes and channels", "classes"), facts(first), facts(shard), strict=True):
            if a != b:
                raise InputError(f"{locations[0]} and {location} do not fit together: their {what} are {a} and {b}; "
                                 "pack the samples instead (stylegan-dist pack)")
    kind: Kind = Image()
    surveyed: dict = {}
    if array_surveys := [shard.survey for shard in found if isinstance(shard.survey, ArraySurvey)]:
        resolution, channels, kind = common_array(array_surveys, arrays)
    else:
        resolution, channels, surveyed = common_form(shard.survey for shard in found if isinstance(shard.survey, ImageSurvey))
    classes, counts = None, None
    if first.table[0, 2] >= 0:
        labels = np.concatenate([shard.table[:, 2] for shard in found])
        counts = np.bincount(labels).tolist()
        classes = [str(number) for number in range(len(counts))]
    tables = [npy_bytes(shard.table) for shard in found]
    shards = [
        Shard(name, len(shard.table), shard.bytes, shard.sha256, _offsets_name(name), hashlib.sha256(table).hexdigest())
        for name, shard, table in zip(names, found, tables, strict=True)
    ]
    if len({shard.offsets for shard in shards}) < len(shards):
        raise InputError("two shards would have the same offsets file: index them into two folders")
    return DatasetIndex(resolution=resolution, channels=channels, encoding=first.ending, classes=classes, class_counts=counts,
                        shards=shards, kind=kind, packed_with=surveyed)


def _offsets_name(name: str) -> str:
    return name.removesuffix(".tar").replace("/", "--") + ".offsets.npy"


def npy_bytes(table: np.ndarray) -> bytes:
    """The content of an offsets file."""
    file = io.BytesIO()
    np.save(file, table)
    return file.getvalue()


def _write(folder: Path, index: DatasetIndex, found: list[_Found]) -> None:
    """The offsets, and last the index: a folder with an index is complete."""
    if lost := sum(shard.without_image for shard in found):
        print(f"{lost} samples have no image and are not part of the set")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for shard, content in zip(index.shards, found, strict=True):
            (folder / shard.offsets).write_bytes(npy_bytes(content.table))
        index.save(folder)
    except OSError as error:
        raise InputError(f"cannot write the index to {folder}: {error.strerror}") from None
