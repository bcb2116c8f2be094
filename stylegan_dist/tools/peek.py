"""A contact sheet of a shard set, as the networks see it."""

from __future__ import annotations

import os
from pathlib import Path

from stylegan_dist.config.schema import DataConfig
from stylegan_dist.data.batches import Replaced
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.data.working_set import open_cache
from stylegan_dist.errors import InputError
from stylegan_dist.monitor.images import MOST_PIXELS, grid_pixels, save_grid


def peek(folder: str | os.PathLike, out: str | os.PathLike, columns: int = 16, rows: int = 8,
         seed: int = 0) -> list[Replaced]:
    """Draw samples from all shards of a set as one PNG.

    Args:
        folder: of the shard set, or its URL: then the shards with the chosen samples are fetched.
        out: the PNG file; replaced if it is there.
        columns, rows: of the sheet; fewer where the set has fewer samples.
        seed: which samples; the same seed shows the same.
    Returns: the corrupt samples that were met. Others replace them.

    Raises:
        InputError: too many samples, an unusable shard set, or a file that cannot be written.
    """
    index = load_index(folder)
    count = min(columns * rows, index.num_samples)
    if (pixels := grid_pixels(count, index.kind.shown_side(index.resolution))) > MOST_PIXELS:
        raise InputError(f"{count} samples make a sheet of {pixels} pixels, more than {MOST_PIXELS}: use fewer --columns or "
                         "--rows")
    cache = open_cache("auto", DataConfig().cache_gb, index, 0)  # which runs use, too
    stream = BatchStream(index, StreamPlan(seed, count, 4096, count), cache=cache)
    try:
        images = index.kind.as_pictures(index.kind.to_network(next(stream)["sample"]))
        replaced = stream.take_replaced()
    finally:
        stream.close()
    try:
        save_grid(Path(out), images, columns)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another file with --out") from None
    return replaced
