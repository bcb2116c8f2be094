"""How fast does a shard set come off this machine's disks and through its decoders?"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm

from stylegan_dist.data.index import load_index
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.errors import InputError


class Speed(NamedTuple):
    """What one number of reader processes achieved."""

    workers: int            # 0: in the process that trains
    samples_per_s: float    # of wall time
    read_us: float          # microseconds a sample in one reader: bytes from disk or page cache
    decode_us: float        # bytes to pixels
    collate_us: float | None   # the rest, such as flips; None with readers, where it cannot be told from waiting


def bench_data(folder: str | os.PathLike, workers: Sequence[int], seconds: float = 5.0, batch: int = 32,
               before: Callable[[], None] | None = None) -> list[Speed]:
    """Measure the stream of a shard set with different numbers of reader processes.

    Args:
        folder: of the shard set.
        workers: numbers of reader processes; 0 reads in this process.
        seconds: of each measurement, after the readers have started.
        batch: images of a batch.
        before: called before each measurement, for example to empty a cache.

    Raises:
        InputError: wrong numbers, or an unusable shard set.
    """
    if not workers or min(workers) < 0 or seconds <= 0 or batch < 1:
        raise InputError("bench-data needs worker counts of 0 or more, a time above 0 and a batch of 1 or more")
    index = load_index(folder)
    found = []
    for number in tqdm(workers, desc="measuring", unit="count"):
        if before:
            before()
        stream = BatchStream(index, seed=0, lanes=64, block=4096, batch=batch, mirror=True, workers=number)
        try:
            found.append(_measure(stream, number, seconds, batch))
        finally:
            stream.close()
    return found


def _measure(stream: BatchStream, workers: int, seconds: float, batch: int) -> Speed:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a reader process
    try:
        for _ in range(1 + 5 * workers):  # the readers start, and what they had prepared ahead is used up
            next(stream)
        stream.seconds_read = stream.seconds_decode = 0.0
        count, began = 0, time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            next(stream)
            count += batch
    finally:
        torch.set_num_threads(threads)
    read, decode = stream.seconds_read, stream.seconds_decode
    collate = None if workers else (taken - read - decode) / count * 1e6
    return Speed(workers, count / taken, read / count * 1e6, decode / count * 1e6, collate)


def workers_for(img_per_s: float, speeds: Sequence[Speed]) -> int | None:
    """The fewest readers that were measured to feed a rate, or an extrapolation from one; None if nothing is known."""
    enough = [speed.workers for speed in speeds if speed.workers and speed.samples_per_s >= img_per_s]
    if enough:
        return min(enough)
    one = [speed.samples_per_s / speed.workers for speed in speeds if speed.workers]
    return math.ceil(img_per_s / max(one)) if one else None
