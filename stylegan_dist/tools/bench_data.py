"""Measures how fast a shard set is read from this machine's disks and decoded."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm

from stylegan_dist.data import storage
from stylegan_dist.data.index import DatasetIndex, load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.data.working_set import open_cache


class Speed(NamedTuple):
    """The measured speed with one number of reader processes."""

    workers: int            # 0: in the process that trains
    cold: bool              # the first pass, from the disk or the network; else what is read was read before
    samples_per_s: float    # of wall time
    read_us: float          # microseconds a sample in one reader: bytes from disk, network or memory
    decode_us: float        # bytes to pixels
    collate_us: float | None   # the rest, such as flips; None with readers, where it cannot be told from waiting


def bench_data(data: str | os.PathLike, workers: Sequence[int], seconds: float = 5.0, batch: int = 32,
               folder: str | os.PathLike | None = None) -> list[Speed]:
    """Measure the stream of a data set with different numbers of reader processes, cold and warm.

    Args:
        data: as `data.shards`.
        workers: numbers of reader processes; 0 reads in this process.
        seconds: of each measurement at most, after the readers have started; a cold one ends with the first epoch.
        batch: images of a batch.
        folder: for the temporary caches of remote shards; None: the system's temporary folder.

    Raises:
        InputError: unusable data.
    """
    index = load_index(data)
    found = []
    for number in tqdm(workers, desc="measuring", unit="count"):
        with tempfile.TemporaryDirectory(prefix="stylegan-dist-bench-", dir=folder) as temporary:
            cache = open_cache(temporary, math.inf, index, 0)
            forget(index)
            for cold in (True, False):
                stream = BatchStream(index, StreamPlan(0, 64, 4096, batch, mirror=True), ReaderOptions(number), cache)
                try:
                    found.append(_measure(stream, number, cold, seconds, batch, index.num_samples))
                finally:
                    stream.close()
    return found


def forget(index: DatasetIndex) -> None:
    """Ask the system to drop what it has in memory of local shards."""
    for shard in index.shards:
        if not storage.is_remote(shard.location):
            with open(storage.local_path(shard.location), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _measure(stream: BatchStream, workers: int, cold: bool, seconds: float, batch: int, epoch: int) -> Speed:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a reader process
    count = 0
    try:
        if not cold:
            for _ in range(1 + 5 * workers):  # the readers start, and what they had prepared ahead is used up
                next(stream)
        stream.seconds_read = stream.seconds_decode = 0.0
        began = time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds and (not cold or count < epoch):
            next(stream)
            count += batch
    finally:
        torch.set_num_threads(threads)
    read, decode = stream.seconds_read, stream.seconds_decode
    collate = None if workers else (taken - read - decode) / count * 1e6
    return Speed(workers, cold, count / taken, read / count * 1e6, decode / count * 1e6, collate)


def workers_for(img_per_s: float, speeds: Sequence[Speed]) -> int | None:
    """The fewest readers that were measured to feed a rate, or an extrapolation from one; None if nothing is known."""
    speeds = [speed for speed in speeds if not speed.cold]  # prefetching hides the disk and the network, but for the start
    enough = [speed.workers for speed in speeds if speed.workers and speed.samples_per_s >= img_per_s]
    if enough:
        return min(enough)
    one = [speed.samples_per_s / speed.workers for speed in speeds if speed.workers]
    return math.ceil(img_per_s / max(one)) if one else None
