"""What the ranks of a node read from, and the cache that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from stylegan_dist.data import storage
from stylegan_dist.data.cache import NodeCache, default_folder
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.mixture import order_of
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import blobs
from stylegan_dist.errors import InputError
from stylegan_dist.redact import redact


def working_set(index: DatasetIndex, plan: StreamPlan, ranks: Iterable[int], steps: int) -> int:
    """Bytes of the remote shards that a node's cache must hold at once: those that its ranks read from, and the next ones.

    Args:
        plan: of any rank, from any global batch on.
        steps: batches that may be under way at a time, one that is trained on and those that readers prepare ahead.
    """
    sizes = [sum(blob.bytes for blob in blobs(shard)) for shard in index.shards]
    parts = [(rank * plan.count, plan.count) for rank in ranks]
    return order_of(index, plan).most_held(sizes, plan.start, plan.batch, parts, steps)


def open_cache(folder: str | os.PathLike, gigabytes: float, index: DatasetIndex, size: int,
               claim: bool = False, verify: str = "once") -> NodeCache | None:
    """The node's cache, or None where all data is local.

    Args:
        folder: "auto" for one on the node's local disk.
        gigabytes: its limit, 10^9 bytes.
        size: bytes that it must hold at once.
        claim: tell other runs so, on behalf of all processes of this run on the node.
        verify: when what is there is compared with its SHA-256 (`NodeCache`).

    Raises:
        InputError: the folder cannot be used, or is too small, for this run or beside the others that use it.
    """
    if not any(storage.is_remote(place) for shard in index.shards for place in (shard.location, shard.offsets_location)):
        return None
    if storage.is_remote(os.fspath(folder)):
        raise InputError(f"data.cache is {redact(os.fspath(folder))}: set it to a folder on a local disk")
    if size > gigabytes * 1e9:
        raise InputError(
            f"data.cache_gb={gigabytes:g} is too small: this node reads from {size / 1e9:.3g} GB of shards at a time, with "
            f"the next ones; set data.cache_gb={size / 1e9 * 1.1:.2g} or more, or lower data.lanes or data.block"
        )
    cache = NodeCache(default_folder() if folder == "auto" else folder, gigabytes * 1e9, verify)
    if claim:
        cache.claim(index.fingerprint, size, sum(blob.bytes for shard in index.shards for blob in blobs(shard)))
    return cache
