"""Batches of a small shard set, and comparing batches."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from stylegan_dist.data.images import ImageOptions
from stylegan_dist.data.index import load_index
from stylegan_dist.data.pack import PackOptions, pack
from stylegan_dist.data.stream import BatchStream

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
    return BatchStream(load_index(folder), **{**ORDER, "batch": 8, **options})


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


def same(a, b) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)


def joined(parts):
    """The parts of all ranks as one batch."""
    first = parts[0]
    return replace(first, **{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(first)})
