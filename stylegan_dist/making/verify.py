"""Checking a shard set: every byte, every header, every sample, every label."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stylegan_dist.data import storage
from stylegan_dist.data.index import (
    INDEX_NAME,
    NO_LABEL,
    DatasetIndex,
    Shard,
    check_sample_size,
    parse_offsets,
    read_index,
    read_offsets,
)
from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular
from stylegan_dist.machine import available_cores
from stylegan_dist.making import pool
from stylegan_dist.making.labels import CLASS_BYTES, class_number
from stylegan_dist.making.tar import TarError, key_and_ending, members

_RESTORE = "restore the file from a copy, or pack the data again with --overwrite"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a shard set."""

    file: str                   # name of the shard, its offsets file, or index.json
    what: str
    sample: str | None = None   # name of the member of the tar file
    offset: int | None = None   # in bytes from the beginning of the tar file
    remedy: str = _RESTORE

    def __str__(self) -> str:
        place = self.file
        if self.sample is not None:
            place += f", sample {self.sample!r}"
        if self.offset is not None:
            place += f", byte {self.offset}"
        return f"{place}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


def verify(folder: str | os.PathLike, deep: bool = True, workers: int | None = None) -> list[Problem]:
    """Check a shard set against its index.

    Sizes and checksums of all files, the headers of all tar members, the offsets, the labels and the
    numbers of samples are checked; with `deep` every sample is decoded too.

    Args:
        folder: of the shard set, or its URL.
        deep: decode every sample and compare its form with the index.
        workers: processes; None: one a core.
    Returns: everything that is wrong, in the order of the shards; empty for a sound set.

    Raises:
        InputError: `workers` below 1.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    try:
        index = read_index(folder)
    except InputError as error:
        return [Problem(INDEX_NAME, str(error), remedy="")]  # the error has its own
    results = {}
    with tqdm(total=index.num_samples, desc="verifying", unit="img", mininterval=pool.bar_interval()) as bar:
        checks = pool.run(
            partial(_check_shard, index, deep), index.shards, workers or available_cores(), bar
        )
        with closing(checks):
            for slot, result in checks:
                results[slot] = result
    problems = [problem for slot in sorted(results) for problem in results[slot][0]]
    counts = [result[1] for result in results.values()]
    # Without all offsets the sum says nothing new.
    if index.classes is not None and all(count is not None for count in counts):
        held = np.sum(counts, axis=0).tolist()
        if held != index.class_counts:
            problems.append(Problem(INDEX_NAME, f"class_counts are {index.class_counts}, the shards hold {held}"))
    return problems


def _check_shard(
    index: DatasetIndex, deep: bool, slot: int, shard: Shard, progress: pool.Progress
) -> tuple[list[Problem], np.ndarray | None]:
    """In a worker: the problems of one shard and its samples per class (None if its offsets are unusable)."""
    problems: list[Problem] = []
    table = _check_offsets(index, shard, problems)
    try:
        with _local_copy(shard, problems) as path, open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_content(content, index, shard, table, deep, problems, slot, progress)
    except FileNotFoundError:
        problems.append(Problem(shard.name, "the shard is missing"))
    except InputError as error:
        problems.append(Problem(shard.name, str(error), remedy=""))  # the error has its own
    except (OSError, ValueError) as error:
        problems.append(Problem(shard.name, f"the shard cannot be read ({getattr(error, 'strerror', None) or error})"))
    progress.done[slot] = shard.samples
    counts = None
    if table is not None and index.classes is not None:
        labels = table[:, 2]
        known = labels[(labels >= 0) & (labels < index.num_classes)]
        counts = np.bincount(known, minlength=index.num_classes)
    return problems, counts


def _check_offsets(index: DatasetIndex, shard: Shard, problems: list[Problem]) -> np.ndarray | None:
    """The offsets of a shard if they are usable: int64 [samples, 3]."""
    place = shard.offsets_location
    if not storage.is_remote(place) and not storage.local_path(place).is_file():
        problems.append(Problem(shard.offsets, "the offsets file is missing"))
        return None
    try:
        if not storage.is_remote(place):
            return read_offsets(shard)
        return parse_offsets(shard, storage.read_bytes(place, partial(parse_offsets, shard)))
    except OSError as error:
        problems.append(Problem(shard.offsets, f"the offsets cannot be read ({error.strerror})"))
    except InputError as error:
        problems.append(Problem(shard.offsets, str(error), remedy=""))
    except ValueError as error:
        problems.append(Problem(shard.offsets, str(error)))
    return None


def _check_content(
    content: mmap.mmap, index: DatasetIndex, shard: Shard, table: np.ndarray | None, deep: bool,
    problems: list[Problem], slot: int, progress: pool.Progress,
) -> None:
    images, labels = _scan(content, index.encoding, shard, problems)
    if (found := sum(map(len, images.values()))) != shard.samples:
        problems.append(Problem(shard.name, f"{found} {index.kind.noun} are found, the index promises {shard.samples}"))
    if table is None:
        return
    values = np.empty((index.resolution, index.resolution, index.channels), index.kind.dtype)
    decode = index.kind.decoder(strict=index.packed)
    for offset, size, label in table.tolist():
        progress.done[slot] += 1
        if progress.stopped:
            return
        name, found_size = images[offset].pop(0) if images.get(offset) else (None, None)
        if found_size != size:
            problems.append(Problem(
                shard.name, f"the offsets promise a sample of {size} bytes here, the tar file has none", name, offset
            ))
        _check_label(label, name, labels, index, shard, offset, problems)
        if deep and offset + size <= len(content):
            try:
                check_sample_size(size, index.most_sample_bytes)
                decode(content[offset : offset + size], values)
            except ValueError as error:
                problems.append(Problem(shard.name, f"the {index.kind.noun[:-1]} cannot be used ({error})", name, offset))


def _check_label(
    label: int, name: str | None, labels: dict[str, bytes], index: DatasetIndex, shard: Shard, offset: int,
    problems: list[Problem],
) -> None:
    if index.classes is None:
        in_range = label == NO_LABEL
        expected = "none"
    else:
        in_range = 0 <= label < index.num_classes
        expected = f"from 0 to {index.num_classes - 1}"
    if not in_range:
        problems.append(Problem(shard.offsets, f"the class is {label}, expected {expected}", name, offset))
    # A label file is plain WebDataset; sets indexed elsewhere may carry labels in the offsets alone.
    key = name and key_and_ending(name)[0]
    if key in labels and index.classes is not None and not _is_class(labels[key], label):
        text = labels[key].decode("ascii", "replace")
        problems.append(Problem(
            shard.name, f"the class in the tar file is {text!r}, the offsets say {label}", f"{key}.cls", offset
        ))


def _is_class(text: bytes, label: int) -> bool:
    try:
        return class_number(text) == label
    except ValueError:
        return False


def _scan(
    content: mmap.mmap, ending: str, shard: Shard, problems: list[Problem]
) -> tuple[dict[int, list[tuple[str, int]]], dict[str, bytes]]:
    """Walk the headers of a tar file: images as {payload offset: (name, bytes) of each with its bytes there}, labels by key."""
    images: dict[int, list[tuple[str, int]]] = defaultdict(list)
    labels: dict[str, bytes] = {}
    try:
        for name, offset, size in members(content):
            key, kind = key_and_ending(name)
            if size < 0:
                continue
            if kind.lower() == ending:
                images[offset].append((name, size))
            elif kind.lower() == "cls":
                labels[key] = content[offset : offset + min(size, CLASS_BYTES)].strip()
    except TarError as error:
        problems.append(Problem(shard.name, str(error), error.name, error.offset))
    return images, labels


@contextlib.contextmanager
def _local_copy(shard: Shard, problems: list[Problem]) -> Iterator[Path]:
    """A shard as a local file, after a look at its size and SHA-256; fetched for as long as it is needed if it is remote.

    Raises:
        OSError, InputError: it is not there, or did not arrive whole.
    """
    if not storage.is_remote(shard.location):
        path = storage.local_path(shard.location)
        open_regular(path).close()  # a pipe would be waited for
        try:
            storage.check_file(path, shard.bytes, shard.sha256)
        except ValueError as error:
            problems.append(Problem(shard.name, str(error)))
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="stylegan-dist-verify-") as file:
        check = partial(storage.check_file, file.name, shard.bytes, shard.sha256)
        try:
            storage.download(shard.location, file.name, check, shard.bytes)
        except InputError as error:
            if os.path.getsize(file.name) != shard.bytes:
                raise
            problems.append(Problem(shard.name, str(error), remedy=""))  # what has changed is found in what arrived
        yield Path(file.name)
