"""Checking a shard set: every byte, every header, every image, every label."""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
import tarfile
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stylegan_dist.data import pool
from stylegan_dist.data.decoding import decode_into
from stylegan_dist.data.index import INDEX_NAME, NO_LABEL, DatasetIndex, Shard, load_offsets, read_index
from stylegan_dist.errors import InputError
from stylegan_dist.machine import available_cores

_TAR_BLOCK = 512
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
        return f"{place}: {self.what}; {self.remedy}"


def verify(folder: str | os.PathLike, deep: bool = True, workers: int | None = None) -> list[Problem]:
    """Check a shard set against its index.

    Sizes and checksums of all files, the headers of all tar members, the offsets, the labels and the
    numbers of samples are checked; with `deep` every image is decoded too.

    Args:
        folder: of the shard set.
        deep: decode every image and compare its resolution and channels with the index.
        workers: processes; None: one a core.
    Returns: everything that is wrong, in the order of the shards; empty for a sound set.

    Raises:
        InputError: `workers` below 1.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    folder = Path(folder)
    try:
        index = read_index(folder)
    except InputError as error:
        return [Problem(INDEX_NAME, str(error))]
    results = {}
    interval = 0.2 if sys.stderr.isatty() else 30
    with tqdm(total=index.num_samples, desc="verifying", unit="img", mininterval=interval) as bar:
        checks = pool.run(
            partial(_check_shard, folder, index, deep), index.shards, workers or available_cores(), bar
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
    folder: Path, index: DatasetIndex, deep: bool, slot: int, shard: Shard, progress: pool.Progress
) -> tuple[list[Problem], np.ndarray | None]:
    """In a worker: the problems of one shard and its samples per class (None if its offsets are unusable)."""
    problems: list[Problem] = []
    table = _check_offsets(folder, index, shard, problems)
    path = folder / shard.name
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_content(content, index, shard, table, deep, problems, slot, progress)
    except FileNotFoundError:
        problems.append(Problem(shard.name, "the shard is missing"))
    except (OSError, ValueError) as error:
        problems.append(Problem(shard.name, f"the shard cannot be read ({error})"))
    progress.done[slot] = shard.samples
    counts = None
    if table is not None and index.classes is not None:
        labels = table[:, 2]
        known = labels[(labels >= 0) & (labels < index.num_classes)]
        counts = np.bincount(known, minlength=index.num_classes)
    return problems, counts


def _check_offsets(folder: Path, index: DatasetIndex, shard: Shard, problems: list[Problem]) -> np.ndarray | None:
    """The offsets of a shard if they are usable: int64 [samples, 3]."""
    path = folder / shard.offsets
    if not path.is_file():
        problems.append(Problem(shard.offsets, "the offsets file is missing"))
        return None
    try:
        table = load_offsets(folder, shard)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except InputError as error:
        problems.append(Problem(shard.offsets, str(error)))
        return None
    except OSError as error:
        problems.append(Problem(shard.offsets, f"the offsets file cannot be read ({error})"))
        return None
    if checksum != shard.offsets_sha256:
        problems.append(Problem(shard.offsets, "the SHA-256 differs from the index"))
    return table


def _check_content(
    content: mmap.mmap, index: DatasetIndex, shard: Shard, table: np.ndarray | None, deep: bool,
    problems: list[Problem], slot: int, progress: pool.Progress,
) -> None:
    if len(content) != shard.bytes:
        problems.append(Problem(shard.name, f"{len(content)} bytes, the index promises {shard.bytes}"))
    elif hashlib.sha256(content).hexdigest() != shard.sha256:
        problems.append(Problem(shard.name, "the SHA-256 differs from the index: some bytes have changed"))
    images, labels = _scan(content, index.encoding, shard, problems)
    if len(images) != shard.samples:
        problems.append(Problem(shard.name, f"{len(images)} images are found, the index promises {shard.samples}"))
    if table is None:
        return
    pixels = np.empty((index.resolution, index.resolution, index.channels), np.uint8)
    for offset, size, label in table.tolist():
        progress.done[slot] += 1
        if progress.stopped:
            return
        name, found_size = images.get(offset, (None, None))
        if found_size != size:
            problems.append(Problem(
                shard.name, f"the offsets promise an image of {size} bytes here, the tar file has none", name, offset
            ))
        _check_label(label, name, labels, index, shard, offset, problems)
        if deep and offset + size <= len(content):
            try:
                decode_into(content[offset : offset + size], pixels)
            except ValueError as error:
                problems.append(Problem(shard.name, f"the image cannot be used ({error})", name, offset))


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
    key = name and name.split(".", 1)[0]
    if key in labels and index.classes is not None and labels[key] != b"%d" % label:
        text = labels[key].decode("ascii", "replace")
        problems.append(Problem(
            shard.name, f"the class in the tar file is {text!r}, the offsets say {label}", f"{key}.cls", offset
        ))


def _scan(
    content: mmap.mmap, ending: str, shard: Shard, problems: list[Problem]
) -> tuple[dict[int, tuple[str, int]], dict[str, bytes]]:
    """Walk the headers of a tar file: images as {payload offset: (name, bytes)}, labels as {key: text}."""
    images: dict[int, tuple[str, int]] = {}
    labels: dict[str, bytes] = {}
    start = 0
    while start + _TAR_BLOCK <= len(content):
        header = content[start : start + _TAR_BLOCK]
        if not any(header):  # the end mark
            return images, labels
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            problems.append(Problem(shard.name, f"damaged tar header ({error})", offset=start))
            return images, labels
        payload = start + _TAR_BLOCK
        start = payload + -(-member.size // _TAR_BLOCK) * _TAR_BLOCK
        if start > len(content):
            problems.append(Problem(shard.name, "the tar file ends inside this member", member.name, payload))
            return images, labels
        key, _, kind = member.name.partition(".")
        if kind == ending:
            images[payload] = (member.name, member.size)
        elif kind == "cls":
            labels[key] = content[payload : payload + member.size].strip()
    problems.append(Problem(shard.name, "the tar file has no end mark: it is truncated", offset=start))
    return images, labels
