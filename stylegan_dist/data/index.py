"""The index of a shard set: what is in it, and where each sample lies. The format is in shards/FORMAT.md.

A shard set is a folder (or a URL) of plain WebDataset tar files with two additions of ours: `index.json` for
the whole set, and one `*.offsets.npy` per shard, so that any sample can be read with one `pread`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from stylegan_dist.data import storage
from stylegan_dist.data.index_file import FORMAT, VERSION, ShardRecord, read_index_file
from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular, write_whole
from stylegan_dist.kinds import Image, Kind, declared
from stylegan_dist.kinds.npy import MAX_HEADER, parse_npy
from stylegan_dist.paths import is_plain
from stylegan_dist.records import MAX_BYTES, shorten

INDEX_NAME = "index.json"
NO_LABEL = -1
LABELS_FROM = "labels_from"  # in `packed_with`: where labels come from that are in the offsets alone
_WEIGHT = re.compile(r"[0-9.eE+-]+")
_WORDS = 16       # of a path with blanks among others
_NAME_BYTES = 255  # of a file name
_ROW = 24         # bytes of the offsets of a sample
# An encoded sample may have this many times the bytes of its decoded form, and so many more: no codec comes near the first,
# and profiles, metadata and other arrays of an npz file keep below the second.
_SAMPLE_FACTOR, _SAMPLE_EXTRA = 8, 64 << 20


@dataclass(frozen=True)
class Shard(ShardRecord):
    """One tar file of the set, and where it lies."""

    # Known once the index is read, and no part of what the data is.
    location: str = field(default="", compare=False)
    offsets_location: str = field(default="", compare=False)

    def record(self) -> dict:
        """What `index.json` holds of it."""
        return {one.name: getattr(self, one.name) for one in fields(ShardRecord)}

    @property
    def offsets_bytes(self) -> int:
        """The most that the offsets file may have."""
        return MAX_HEADER + _ROW * self.samples

    def placed(self, shards_at: str, offsets_at: str) -> Shard:
        """The same shard in these folders or below these URLs."""
        return replace(self, location=storage.join(shards_at, self.name),
                       offsets_location=storage.join(offsets_at, self.offsets))


@dataclass(frozen=True)
class Part:
    """One shard set of a mixture."""

    shards: int    # how many of the mixture's shards are of this set
    weight: float  # its images among the images of training are in proportion to this


@dataclass(frozen=True)
class DatasetIndex:
    """Everything known about a shard set without opening a shard."""

    resolution: int
    channels: int                       # of images: 1 grey, 3 RGB, 4 RGBA
    encoding: str                       # file name ending of the samples, e.g. "png"
    classes: list[str] | None           # class names in the order of their numbers; None: no labels
    class_counts: list[int] | None      # samples of each class
    shards: list[Shard]
    packed_with: dict = field(default_factory=dict)   # the options of `pack`, for the record
    skipped: list[dict] = field(default_factory=list)  # unreadable source files: name, reason
    shards_at: str | None = None        # folder or URL of the shards; None: beside the index
    parts: tuple[Part, ...] = ()        # the sets of a mixture, in the order of `shards`; empty for one set; not stored
    kind: Kind = field(default_factory=Image)

    @property
    def packed(self) -> bool:
        """Whether `pack` wrote the shards, so that every sample has the form that is promised."""
        return "fingerprint" in self.packed_with

    @property
    def relabelled(self) -> bool:
        """Whether the labels are others than those in the tar files."""
        return LABELS_FROM in self.packed_with

    @property
    def most_sample_bytes(self) -> int:
        """What is longer is no sample, and not read."""
        return _SAMPLE_FACTOR * self.resolution**2 * self.channels * np.dtype(self.kind.dtype).itemsize + _SAMPLE_EXTRA

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def num_classes(self) -> int:
        """0 for a set without labels."""
        return len(self.classes) if self.classes else 0

    @property
    def fingerprint(self) -> str:
        """The data's identity: SHA-256 over names, sizes and checksums of all shards, weights of a mixture, form of arrays."""
        text = json.dumps([shard.record() for shard in self.shards], sort_keys=True)
        if self.parts:
            text += json.dumps([asdict(part) for part in self.parts])
        for facts in self.kind.identity().values():
            text += json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write `index.json` of one set, whole or not at all."""
        place = {} if self.shards_at is None else {"shards_at": self.shards_at}
        content = {
            "format": FORMAT, "version": VERSION, "num_samples": self.num_samples, "resolution": self.resolution,
            "channels": self.channels, "encoding": self.encoding, "classes": self.classes, "class_counts": self.class_counts,
            "packed_with": self.packed_with, "skipped": self.skipped, **self.kind.facts(), **place,
            "shards": [shard.record() for shard in self.shards],
        }
        write_whole(Path(folder) / INDEX_NAME, json.dumps(content, indent=1) + "\n")


def load_index(data: str | os.PathLike) -> DatasetIndex:
    """The index of everything that a run trains on, with the sizes of local shards checked.

    Args:
        data: one shard set or several, separated by spaces: folders, or URLs that fsspec knows, with braces and
            wildcards, each with an optional `@WEIGHT`. Without weights every image counts the same.

    Raises:
        InputError: no index, an index of another format, sets that do not fit together, or a local shard that is
            missing or of the wrong size.
    """
    entries = _entries(os.fspath(data))
    if not entries:
        raise InputError("data.shards names no data: set it to the folder of a shard set")
    indices = [read_index(location) for location, _ in entries]
    for index in indices:
        for shard in index.shards:
            check_shard_size(shard)
    if len(indices) == 1:
        return indices[0]
    for (location, _), index in zip(entries[1:], indices[1:], strict=True):
        if index.kind != indices[0].kind:
            raise InputError(f"{entries[0][0]} and {location} cannot be mixed: they hold {indices[0].kind.noun} and "
                             f"{index.kind.noun}, or their dtype, normalisation or form differ (alphabet, frames, "
                             "spectrograms, autoencoder); pack them with the same options, also --dtype, --offset and --scale")
        for name in ("resolution", "channels"):
            if (a := getattr(indices[0], name)) != (b := getattr(index, name)):
                raise InputError(f"{entries[0][0]} and {location} cannot be mixed: their {name} are {a} and {b}")
        if indices[0].classes != index.classes:
            raise InputError(f"{entries[0][0]} and {location} cannot be mixed: "
                             f"{_difference(indices[0].classes or [], index.classes or [])}")
    if len({weight is None for _, weight in entries}) > 1:
        raise InputError(f"data.shards gives weights to some sets only: give one to each, as in {entries[0][0]}@1")
    parts = tuple(Part(len(index.shards), float(index.num_samples if weight is None else weight))
                  for index, (_, weight) in zip(indices, entries, strict=True))
    counts = [index.class_counts for index in indices if index.class_counts is not None]
    return replace(
        indices[0], shards=[shard for index in indices for shard in index.shards], parts=parts, skipped=[],
        packed_with={"fingerprint": "of several sets"} if all(index.packed for index in indices) else {},
        class_counts=_mixed_counts(indices, parts) if counts else None, shards_at=None,
    )


def _difference(ours: list[str], theirs: list[str]) -> str:
    """How the classes of two sets differ, however many there are."""
    if len(ours) != len(theirs):
        return f"they have {len(ours)} and {len(theirs)} classes"
    number, names = next((number, pair) for number, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"class {number} is {shorten(names[0])} in one and {shorten(names[1])} in the other"


def _entries(data: str) -> list[tuple[str, float | None]]:
    """(location, weight) of each set that data.shards names."""
    if os.path.exists(storage.local_path(data)):  # also a path with blanks
        return [(data, None)]
    entries: list[tuple[str, float | None]] = []
    for word in _words(data):
        pattern, at, text = word.rpartition("@")
        weight: float | None = None
        if at and _WEIGHT.fullmatch(text):
            try:
                weight = float(text)
            except ValueError:
                weight = 0.0
            if not 0 < weight < float("inf"):
                storage.check_location(word)  # a host of digits behind a password is no weight
                raise InputError(f"the weight of {word} in data.shards must be a positive number")
        else:
            pattern = word
        storage.check_location(pattern)
        if pattern.endswith(".tar"):
            raise InputError(f"data.shards names tar files ({pattern}): make an index of them once with `stylegan-dist index "
                             f"'{pattern}' FOLDER`, and set data.shards=FOLDER")
        if os.path.exists(storage.local_path(pattern)):
            locations = [pattern]
        elif storage.has_wildcards(pattern):  # of all that matches, what holds an index
            found = storage.expand(storage.join(pattern, INDEX_NAME))
            locations = [name.removesuffix(INDEX_NAME).rstrip("/") for name in found]
        else:
            locations = storage.expand(pattern)
        entries += [(location, None if weight is None else weight / len(locations)) for location in locations]
    return entries


def _words(data: str) -> Iterator[str]:
    """The places that a text names, with their weights: parted by blanks, but a path that is there may have some itself."""
    words = data.split()
    while words:
        count = 1 if storage.is_remote(words[0]) else min(len(words), _WORDS)
        while count > 1 and not _is_there(" ".join(words[:count])):
            count -= 1
        yield " ".join(words[:count])
        del words[:count]


def _is_there(word: str) -> bool:
    """Whether a path is there, with or without a weight behind it."""
    path, _, weight = word.rpartition("@")
    return any(os.path.exists(storage.local_path(one)) for one in (word, path if _WEIGHT.fullmatch(weight) else word))


def _mixed_counts(indices: list[DatasetIndex], parts: tuple[Part, ...]) -> list[int]:
    """Images of each class in proportion to how often training sees them, as if all sets together were seen once."""
    total = sum(index.num_samples for index in indices)
    share = [part.weight / sum(other.weight for other in parts) * total / index.num_samples
             for part, index in zip(parts, indices, strict=True)]
    counts = np.sum([np.asarray(index.class_counts) * s for index, s in zip(indices, share, strict=True)], axis=0)
    return [max(round(float(count)), int(count > 0)) for count in counts]


def read_index(folder: str | os.PathLike) -> DatasetIndex:
    """Read the `index.json` of one set without looking at the shards.

    Args:
        folder: or a URL that fsspec knows.

    Raises:
        InputError: no index, an index of another format, or one that contradicts itself.
    """
    home = os.fspath(folder)
    storage.check_location(home)
    path = storage.join(home, INDEX_NAME)
    if not storage.is_remote(home):
        _check_local_index(home, path)
    parse = partial(_parse_index, home, path)
    try:
        return parse(storage.read_bytes(path, parse))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); pack the data again or restore the file") from None


def _check_local_index(home: str, path: str) -> None:
    """Raise InputError unless a regular file of a possible size is there."""
    file = storage.local_path(path)
    try:
        size = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        size = -1
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; correct the path or the permissions") from None
    if size < 0 or not file.is_file():
        raise InputError(
            f"no {INDEX_NAME} in {home}: pack the images first (stylegan-dist pack SOURCE {home}), index shards that other "
            f"tools made (stylegan-dist index {home}), or correct the path"
        )
    if size > MAX_BYTES:
        raise InputError(f"{path} is damaged ({size} bytes, more than the {MAX_BYTES} that an index may have); pack the data "
                         "again or restore the file")


def _parse_index(home: str, path: str, text: bytes) -> DatasetIndex:
    """The index in a file's content. Raises: ValueError: it is damaged; InputError: it is of another kind, or not trusted."""
    record = read_index_file(text, path)
    at = record.shards_at or home
    if not is_plain(at):
        raise InputError(f"{path} names the place {shorten(at)}, which is no path or URL; the index is not trusted")
    if record.shards_at:
        storage.check_location(record.shards_at, path)
    for shard in record.shards:
        _check_name(shard.name, path, folders=record.shards_at is not None)
        _check_name(shard.offsets, path)
    below, beside = (storage.join(place, "x")[:-1] for place in (at, home))  # joining 100,000 paths would take seconds
    shards = [Shard(**vars(one), location=below + one.name, offsets_location=beside + one.offsets) for one in record.shards]
    return DatasetIndex(
        resolution=record.resolution, channels=record.channels, encoding=record.encoding, classes=record.classes or None,
        class_counts=record.class_counts or None, shards=shards, packed_with=record.packed_with or {},
        skipped=record.skipped or [], shards_at=record.shards_at,
        kind=declared(record.array),
    )


def _check_name(name: str, where: str, folders: bool = False) -> None:
    """Refuse names that could lead out of a folder; `folders`: sub-folders are allowed."""
    steps = name.split("/")
    plain = is_plain(name) and "\\" not in name and all(0 < len(step.encode()) <= _NAME_BYTES for step in steps)
    if not plain or set(steps) & {".", ".."} or (len(steps) > 1 and not folders):
        raise InputError(f"{where} names the file {shorten(name)}, which is not a plain file name; the index is not trusted")


def check_shard_size(shard: Shard) -> None:
    """Raise InputError unless a local shard and its offsets are there and the shard has the promised size."""
    for location in (shard.location, shard.offsets_location):
        if not storage.is_remote(location) and not os.path.isfile(storage.local_path(location)):
            raise InputError(f"{location} is missing: restore it or pack the data again")
    if storage.is_remote(shard.location):
        return
    size = storage.local_path(shard.location).stat().st_size
    if size != shard.bytes:
        folder = os.path.dirname(shard.offsets_location)
        raise InputError(
            f"{shard.location} has {size} bytes, the index promises {shard.bytes}: it is truncated or "
            f"altered; restore it or pack the data again (stylegan-dist verify {folder} checks every shard)"
        )


class Oversized(ValueError):
    """A sample that is not read, because it has more bytes than any sample of its set needs."""


def check_sample_size(size: int, most: int) -> None:
    """Raise Oversized for more than `DatasetIndex.most_sample_bytes`."""
    if size > most:
        raise Oversized(f"{size} bytes, more than the {most} that a sample of this set may have")


def parse_offsets(shard: Shard, content: bytes) -> np.ndarray:
    """Where the samples of a shard lie: int64 [samples, 3] = payload offset, payload bytes, class.

    Args:
        content: of the offsets file.

    Raises:
        ValueError: it is not what the index describes, or does not fit the shard.
    """
    if hashlib.sha256(content).hexdigest() != shard.offsets_sha256:
        raise ValueError(f"the SHA-256 differs from the index ({len(content)} bytes): truncated or altered")
    table = parse_npy(content, _ROW * shard.samples)
    fits = table.dtype == np.int64 and table.shape == (shard.samples, 3)
    # Compared one by one: the sum of two may be beyond an int64.
    if not fits or (table[:, :2] < 0).any() or (table[:, 0] > shard.bytes).any() or (
            table[:, 1] > shard.bytes - table[:, 0]).any():
        raise ValueError(f"the offsets do not fit {shard.name}")
    return table


def read_offsets(shard: Shard) -> np.ndarray:
    """The parsed offsets of a local shard. Raises: OSError, ValueError: they cannot be read, or are damaged."""
    with open_regular(storage.local_path(shard.offsets_location)) as file:
        return parse_offsets(shard, file.read(shard.offsets_bytes + 1))


def load_offsets(shard: Shard) -> np.ndarray:
    """The parsed offsets of a local shard. Raises InputError when they are damaged."""
    try:
        return read_offsets(shard)
    except (OSError, ValueError) as error:
        raise InputError(f"{shard.offsets_location} is damaged ({error}); restore it or pack the data again") from None
