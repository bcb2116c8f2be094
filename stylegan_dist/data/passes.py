"""Passes of a small training over a shard set: what is held out, batches of the rest, and the samples that were held out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stylegan_dist import randomness
from stylegan_dist.config.schema import DataConfig
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.mixture import order_of
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.data.working_set import open_cache
from stylegan_dist.errors import InputError

_HELD_SHARE, _HELD_MOST = 0.1, 10_000
_LANES, _BLOCK = 64, 4096             # of the order of the samples


class Part(NamedTuple):
    """A batch without what is held out or was replaced. It may be empty."""

    nimg: int         # images before this batch
    number: Tensor    # int64 [n], of the images
    sample: Tensor    # [n, C, H, W]
    label: Tensor     # int64 [n], -1 for none


def new_folder(folder: Path, how: str = "") -> Path:
    """Before hours of work: the folder is there and empty. Raises InputError, which says `how` another one is chosen."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty: choose another folder{how}, or remove it")
    except OSError as error:
        raise InputError(f"cannot use the folder {folder}: {error.strerror or error}; choose another{how}") from None
    return folder


def held_out(index: DatasetIndex, seed: int, purpose: str) -> list[int]:
    """The numbers of the samples that are held out, counted through all shards. They depend on seed and purpose alone."""
    count = max(1, min(round(_HELD_SHARE * index.num_samples), _HELD_MOST))
    return sorted(randomness.permutation(seed, purpose, 0, index.num_samples)[:count].tolist())


def batches(index: DatasetIndex, held: list[int], images: int, size: int, seed: int, workers: int) -> Iterator[Part]:
    """The batches of `images` images, `size` at a time, in an order that depends on the seed alone.

    Args:
        workers: reader processes; they change nothing but the speed.
    """
    plan = StreamPlan(seed, _LANES, _BLOCK, size)
    order, first = order_of(index, plan), _first_numbers(index)
    stream = BatchStream(index, plan, ReaderOptions(workers), cache_of(index))
    try:
        for nimg in range(0, images, size):
            batch = next(stream)
            places = order.places(batch.index.numpy())
            kept = ~np.isin(first[places[:, 0]] + places[:, 1], held)
            replaced = [one.image for one in stream.take_replaced()]  # by which sample, it does not say: it may be a held one
            kept &= ~np.isin(batch.index.numpy(), replaced)
            kept[images - nimg:] = False
            mask = torch.from_numpy(kept)
            yield Part(nimg, batch.index[mask], batch["sample"][mask], batch["label"][mask])
    finally:
        stream.close()


def held_samples(index: DatasetIndex, held: list[int]) -> Iterator[tuple[int, Tensor, int]]:
    """The numbers of samples that were held out, the samples [1, C, H, W], their labels, -1 for none. What is unreadable is
    left out."""
    reader = ShardReader(index, cache_of(index))
    decode, first = index.kind.decoder(strict=index.packed), _first_numbers(index)
    try:
        for number in tqdm(held, desc="held-out samples", unit="img", mininterval=bar_interval()):
            shard = int(first.searchsorted(number, side="right")) - 1
            values = np.empty((index.resolution, index.resolution, index.channels), index.kind.dtype)
            try:
                data, label = reader.read(shard, number - int(first[shard]))
                decode(data, values)
            except ValueError:
                continue
            yield number, torch.from_numpy(values).permute(2, 0, 1)[None], label
    finally:
        reader.close()


def bar_interval() -> float:
    """Seconds between two states of a progress bar: few lines where there is no terminal to redraw a line on."""
    return 0.2 if sys.stderr.isatty() else 30.0


def cache_of(index: DatasetIndex) -> NodeCache | None:
    """The cache that runs use, too."""
    return open_cache("auto", DataConfig().cache_gb, index, 0)


def _first_numbers(index: DatasetIndex) -> np.ndarray:
    """The number of the first sample of every shard, int64."""
    return np.cumsum([0, *(shard.samples for shard in index.shards)])[:-1]
