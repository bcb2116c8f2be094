"""Batches of a small shard set, and comparing batches."""

from __future__ import annotations

import os
from dataclasses import fields

import numpy as np
import torch
from PIL import Image

from stylegan_dist.data.batches import Batch
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

ORDER = {"seed": 5, "lanes": 4, "block": 3}
SAMPLES = 44
STEPS = 13  # 104 images: beyond the second epoch of 44


def pack_random(folder, channels: int = 3):
    """44 images of random pixels in three classes, in seven shards."""
    for number in range(SAMPLES):
        path = folder / "images" / "abc"[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    options = PackOptions(ImageOptions(8, channels), labels="folders", samples_per_shard=7, workers=1)
    pack(folder / "images", folder / "shards", options)
    return folder / "shards"


def open_stream(folder, **options) -> BatchStream:
    return stream_of(load_index(folder), **{**ORDER, "batch": 8, **options})


def stream_of(index, cache=None, **options) -> BatchStream:
    """A stream from the fields of a plan and of options of readers."""
    names = {field.name for field in fields(ReaderOptions)}
    readers = ReaderOptions(**{name: options.pop(name) for name in names & options.keys()})
    return BatchStream(index, StreamPlan(**options), readers, cache)


def take(folder, count: int, **options) -> list:
    stream = open_stream(folder, **options)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def open_shards_of(folder) -> int:
    """Shards that this process has open."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        if os.path.islink(link := f"/proc/self/fd/{name}"):
            links.append(os.readlink(link))
    return sum(link.startswith(f"{folder}/") for link in links)


def locate(order, first: int, count: int) -> list[tuple[int, int]]:
    """Shard, and sample within the shard, of images first, ..., first + count - 1."""
    return [(shard, sample) for shard, sample in order.places(np.arange(first, first + count)).tolist()]


def same(a, b) -> bool:
    return torch.equal(a["sample"], b["sample"]) and torch.equal(a["label"], b["label"]) and torch.equal(a.index, b.index)


def joined(parts):
    """The parts of all ranks as one batch."""
    return Batch(torch.cat([part.index for part in parts]),
                 {name: torch.cat([part[name] for part in parts]) for name in parts[0].fields})
