"""Other labels for a shard set: a new index with offsets of its own, which refers to the shards where they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from stylegan_dist.data import storage
from stylegan_dist.data.index import LABELS_FROM, DatasetIndex, Shard, load_offsets, parse_offsets
from stylegan_dist.errors import InputError
from stylegan_dist.making.scan import npy_bytes


def place_of_shards(index: DatasetIndex) -> str:
    """The folder or URL of the shards of one set, as another index may name it.

    Raises:
        InputError: no index may.
    """
    first = index.shards[0]
    place = first.location[:-len(first.name)]
    if not storage.is_remote(place):
        return str(storage.local_path(place).resolve())
    if place.partition("://")[0] not in storage.DRIVERS:
        raise InputError(f"an index cannot name shards at {place}, only in folders and at URLs such as "
                         f"{', '.join(f'{name}://' for name in storage.DRIVERS)}: fetch the shards, or put them there")
    return place.rstrip("/")


def write_relabelled(index: DatasetIndex, labels: Sequence[np.ndarray], classes: int, origin: dict,
                     folder: Path) -> DatasetIndex:
    """Write offsets with these labels, and last the index. Returns that.

    Args:
        index: of one set with whatever labels. Its shards stay as they are.
        labels: of the samples of each shard, integers [samples] from 0 to classes - 1.
        origin: how the labels came about, for the record in `packed_with`.
        folder: empty.
    Raises:
        InputError: offsets cannot be read; the folder cannot be written.
    """
    shards, counts = [], np.zeros(classes, np.int64)
    packed_with = {**index.packed_with, LABELS_FROM: origin}
    if index.packed:
        packed_with["fingerprint"] = hashlib.sha256(json.dumps([index.packed_with["fingerprint"], origin]).encode()).hexdigest()
    try:
        for shard, numbers in zip(index.shards, labels, strict=True):
            table = _offsets(shard)
            table[:, 2] = numbers
            counts += np.bincount(table[:, 2], minlength=classes)
            content = npy_bytes(table)
            (folder / shard.offsets).write_bytes(content)
            shards.append(replace(shard, offsets_sha256=hashlib.sha256(content).hexdigest()))
        new = replace(index, classes=[str(number) for number in range(classes)], class_counts=counts.tolist(), shards=shards,
                      packed_with=packed_with, shards_at=place_of_shards(index))
        new.save(folder)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; choose another folder with --out") from None
    return new


def _offsets(shard: Shard) -> np.ndarray:
    if not storage.is_remote(shard.offsets_location):
        return load_offsets(shard).copy()
    parse = partial(parse_offsets, shard)
    return parse(storage.read_bytes(shard.offsets_location, parse)).copy()
