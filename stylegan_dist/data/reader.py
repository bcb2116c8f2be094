"""Random access to the encoded samples of shards, local or in the node's cache."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from stylegan_dist.data import storage
from stylegan_dist.data.cache import Blob, CacheFull, NodeCache
from stylegan_dist.data.index import (
    INDEX_NAME,
    NO_LABEL,
    DatasetIndex,
    Oversized,
    Shard,
    check_sample_size,
    parse_offsets,
    read_offsets,
)
from stylegan_dist.data.sums import Sums
from stylegan_dist.errors import InputError
from stylegan_dist.files import regular_descriptor
from stylegan_dist.private import user_folder

OPEN_SHARDS = 256
FULL_PAUSE_SECONDS = 5.0
REFRESH_SECONDS = 30.0
_OFFSETS_HEADER, _OFFSETS_ROW = 128, 24  # bytes of NumPy's header and of three int64


class ShardReader:
    """Random access to the samples of a data set, with one `pread` each.

    Local shards are read where they lie. Remote ones are read from the node's cache, which fetches them when
    they are first needed; `prefetch` names those that will be.

    Args:
        verify: when local shards are compared with their SHA-256 before they are read, as in `Sums`; the cache
            has a setting of its own for what it holds.
    """

    def __init__(self, index: DatasetIndex, cache: NodeCache | None = None, verify: str = "never"):
        self.index = index
        self._most_bytes = index.most_sample_bytes
        self.cache = cache
        self._compared: set[str] = set()  # local shards that this object has found good
        self._sums = Sums(verify, user_folder("sums") if verify != "never" else None)
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()
        self._prefetcher: _Prefetcher | None = None

    def read(self, shard: int, sample: int) -> tuple[bytes, int]:
        """The encoded sample and its class number.

        Raises:
            InputError: the shard cannot be read, or its offsets do not fit it.
            ValueError: it is longer than any sample, and has not been read.
        """
        try:
            return self._read(shard, sample)
        except Oversized:
            raise
        except (OSError, ValueError):  # a network file system may have a bad moment
            place = self.place(shard, sample)
            return storage.retrying(lambda: self._read(shard, sample, anew=True), f"read {place}")

    def _read(self, shard: int, sample: int, anew: bool = False) -> tuple[bytes, int]:
        if anew and shard in self._open:
            os.close(self._open.pop(shard)[0])
        file, table = self._opened(shard)
        offset, size, label = table[sample].tolist()
        check_sample_size(size, self._most_bytes)
        data = os.pread(file, size, offset)
        if len(data) < size:
            raise ValueError(f"the file is damaged, it ends at byte {min(offset + len(data), os.fstat(file).st_size)}")
        return data, label

    def place(self, shard: int, sample: int) -> str:
        """Where a sample lies, for people."""
        offset = int(self._opened(shard)[1][sample][0])
        return f"{self.index.shards[shard].location}, sample {sample} at byte {offset}"

    def retain(self, shards: Iterable[int]) -> None:
        """Close all other shards, so that the cache may let them go."""
        for shard in set(self._open) - set(shards):
            os.close(self._open.pop(shard)[0])

    def prefetch(self, shards: list[int]) -> None:
        """Have what these shards need done in the background, in this order; replaces an earlier list.

        Remote ones are fetched, local ones compared with their SHA-256.
        """
        jobs: list[Callable[[], object]] = []
        for shard in shards:
            info = self.index.shards[shard]
            if self.cache is not None:
                jobs += [partial(self.cache.fetch, blob) for blob in blobs(info)]
            local = not storage.is_remote(info.location)
            if local and self._sums.mode != "never" and info.sha256 and info.location not in self._compared:
                jobs.append(partial(self._verify_ahead, info))
        if self._prefetcher is None and jobs:
            self._prefetcher = _Prefetcher()
        if self._prefetcher is not None:
            self._prefetcher.want(jobs)

    def close(self) -> None:
        """Close all shards; a later read opens them again."""
        if self._prefetcher is not None:
            self._prefetcher.want(None)
            self._prefetcher = None
        self.retain(())

    def _opened(self, shard: int) -> tuple[int, np.ndarray]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        info = self.index.shards[shard]
        try:
            self._open[shard] = self._open_both(info)
        except OSError as error:
            offsets = storage.local_path(info.offsets_location)
            what = f"read {info.offsets_location}" if error.filename in (offsets, str(offsets)) else f"open {info.location}"
            self._open[shard] = storage.retrying(partial(self._open_both, info), what)
        if len(self._open) > OPEN_SHARDS:
            _, (oldest, _) = self._open.popitem(last=False)
            os.close(oldest)
        return self._open[shard]

    def _open_both(self, info: Shard) -> tuple[int, np.ndarray]:
        """A descriptor of a shard that was compared, and its offsets. Raises InputError; OSError: trying again may help."""
        place = info.offsets_location
        try:
            if storage.is_remote(place):
                with os.fdopen(self._cache().open(_offsets_blob(info)), "rb") as file:
                    table = parse_offsets(info, file.read())
            else:
                table = read_offsets(info)
        except ValueError as error:
            raise InputError(f"{place} is damaged: {error}; {_remedy(info)}") from None
        least = 0 if self.index.num_classes else NO_LABEL
        foreign = (table[:, 2] < least) | (table[:, 2] >= max(self.index.num_classes, 1))
        if foreign.any():
            raise InputError(f"{place} names classes that {INDEX_NAME} does not know, such as {table[foreign.argmax(), 2]} "
                             f"where it has {self.index.num_classes}; pack the data again")
        return self._open_compared(info), table

    def _open_compared(self, info: Shard) -> int:
        if storage.is_remote(info.location):
            return self._cache().open(_shard_blob(info))
        path = storage.local_path(info.location)
        file = regular_descriptor(path)
        try:
            self._sums.check(file, path, info.sha256)
            self._compared.add(info.location)
        except BaseException as error:
            os.close(file)
            if isinstance(error, ValueError):
                raise InputError(f"{info.location} is damaged: {error}; {_remedy(info)}, or train on it as it is: "
                                 "data.verify=never") from None
            raise
        return file

    def _verify_ahead(self, info: Shard) -> None:
        os.close(self._open_compared(info))

    def _cache(self) -> NodeCache:
        if self.cache is None:
            raise RuntimeError("remote shards need a cache")
        return self.cache

    __del__ = close


def _remedy(shard: Shard) -> str:
    folder = os.path.dirname(shard.offsets_location)
    return f"restore it or pack the data again (stylegan-dist verify {folder} says what is damaged)"


def blobs(shard: Shard) -> list[Blob]:
    """The remote files of a shard."""
    return [blob for blob in (_offsets_blob(shard), _shard_blob(shard)) if storage.is_remote(blob.location)]


def _shard_blob(shard: Shard) -> Blob:
    return Blob(shard.location, shard.bytes, shard.sha256)


def _offsets_blob(shard: Shard) -> Blob:
    return Blob(shard.offsets_location, _OFFSETS_HEADER + _OFFSETS_ROW * shard.samples, shard.offsets_sha256)


class _Prefetcher:
    """A thread that does what will be needed. What it cannot do, the reader that needs it will.

    It looks through the list again and again: other runs, whose own files change faster, may have removed some.
    """

    def __init__(self) -> None:
        self._wanted: list[Callable[[], object]] | None = []  # None: the thread ends
        self._next_one = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="prefetch").start()

    def want(self, wanted: Iterable[Callable[[], object]] | None) -> None:
        with self._changed:
            self._wanted = None if wanted is None else list(wanted)
            self._next_one = 0
            self._changed.notify()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except CacheFull:  # until the readers have moved on
                with self._changed:
                    self._changed.wait(FULL_PAUSE_SECONDS)
            except (InputError, OSError):
                pass  # the reader that needs it meets the same fault, and reports it

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            while self._wanted is not None and self._next_one == len(self._wanted):
                if not self._changed.wait(REFRESH_SECONDS):
                    self._next_one = 0
            if self._wanted is None:
                return None
            self._next_one += 1
            return self._wanted[self._next_one - 1]
