"""The index of a shard set: what is in it, and where each sample lies. The format is in shards/FORMAT.md.

A shard set is a folder of plain WebDataset tar files with two additions of ours: `index.json` for the
whole set, and one `*.offsets.npy` per shard, so that any sample can be read with one `pread`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole

INDEX_NAME = "index.json"
FORMAT = "stylegan-dist-shards"
VERSION = 1
NO_LABEL = -1
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
RESOLUTIONS = tuple(2**i for i in range(3, 11))


@dataclass(frozen=True)
class Shard:
    """One tar file of the set."""

    name: str            # file name, relative to the index
    samples: int
    bytes: int           # size of the tar file
    sha256: str          # of the tar file
    offsets: str         # name of the .npy file: int64 [samples, 3] = payload offset, payload bytes, class
    offsets_sha256: str


@dataclass(frozen=True)
class DatasetIndex:
    """Everything known about a shard set without opening a shard."""

    resolution: int
    channels: int                       # 1 grey, 3 RGB, 4 RGBA
    encoding: str                       # file name ending of the images, e.g. "png"
    classes: list[str] | None           # class names in the order of their numbers; None: no labels
    class_counts: list[int] | None      # samples of each class
    shards: list[Shard]
    packed_with: dict = field(default_factory=dict)   # the options of `pack`, for the record
    skipped: list[dict] = field(default_factory=list)  # unreadable source files: name, reason

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def num_classes(self) -> int:
        """0 for a set without labels."""
        return len(self.classes) if self.classes else 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names, sizes and checksums of all shards: the identity of the data."""
        text = json.dumps([asdict(shard) for shard in self.shards], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write `index.json` atomically."""
        content = {"format": FORMAT, "version": VERSION, "num_samples": self.num_samples, **asdict(self)}
        write_whole(Path(folder) / INDEX_NAME, json.dumps(content, indent=1) + "\n")


def load_index(folder: str | os.PathLike) -> DatasetIndex:
    """Read `index.json` and check that every shard is there with the promised size.

    Raises:
        InputError: no index, an index of another format, or a shard missing or of the wrong size.
    """
    index = read_index(folder)
    for shard in index.shards:
        check_shard_size(Path(folder), shard)
    return index


def read_index(folder: str | os.PathLike) -> DatasetIndex:
    """Read `index.json` without looking at the shards.

    Raises:
        InputError: no index, an index of another format, or one that contradicts itself.
    """
    folder = Path(folder)
    path = folder / INDEX_NAME
    if not path.is_file():
        raise InputError(
            f"no {INDEX_NAME} in {folder}: pack the images first (stylegan-dist pack SOURCE {folder}), "
            "or correct data.shards"
        )
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise InputError(f"{path} is not a shard index of this program; pack the data again")
        if (version := content.pop("version")) != VERSION:
            raise InputError(f"{path} has format version {version}, this program reads {VERSION}; pack the data again")
        promised = content.pop("num_samples")
        shards = [Shard(**shard) for shard in content.pop("shards")]
        index = DatasetIndex(shards=shards, **content)
        held = index.num_samples
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); pack the data again or restore the file") from None
    if index.channels not in CHANNELS or index.resolution not in RESOLUTIONS:
        raise InputError(f"{path} is damaged: no images of {index.resolution} pixels with {index.channels} channels exist here")
    if promised != held or held < 1:
        raise InputError(f"{path} is damaged: it promises {promised} samples, its shards hold {held}")
    for shard in index.shards:
        check_plain_name(shard.name, path)
        check_plain_name(shard.offsets, path)
    return index


def check_plain_name(name: str, where: Path) -> None:
    """Refuse names that could lead out of the folder of the index."""
    if not name or name != os.path.basename(name) or name in (".", ".."):
        raise InputError(f"{where} names the file {name!r}, which is not a plain file name; the index is not trusted")


def check_shard_size(folder: Path, shard: Shard) -> None:
    """Raise InputError unless the shard and its offsets are there and the shard has the promised size."""
    for name in (shard.name, shard.offsets):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: restore it or pack the data again")
    size = (folder / shard.name).stat().st_size
    if size != shard.bytes:
        raise InputError(
            f"{folder / shard.name} has {size} bytes, the index promises {shard.bytes}: it is truncated or "
            f"altered; restore it or pack the data again (stylegan-dist verify {folder} checks every shard)"
        )


def load_offsets(folder: str | os.PathLike, shard: Shard) -> np.ndarray:
    """Where the samples of a shard lie: int64 [samples, 3] = payload offset, payload bytes, class.

    Raises:
        InputError: the file is unreadable, or does not fit the shard.
    """
    path = Path(folder) / shard.offsets
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it or pack the data again") from None
    fits = table.dtype == np.int64 and table.shape == (shard.samples, 3)
    if not fits or (table[:, :2] < 0).any() or (table[:, 0] + table[:, 1] > shard.bytes).any():
        raise InputError(f"{path} does not fit {shard.name}; restore it or pack the data again")
    return table
