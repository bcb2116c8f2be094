"""Data sets that several test files use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_dist.data.images import ImageOptions
from stylegan_dist.data.pack import PackOptions, pack

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 RGB images of 16 pixels in 3 classes, in several shards."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for i in range(60):
        path = folder / "images" / f"class{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(path)
    options = PackOptions(ImageOptions(resolution=16), labels="folders", samples_per_shard=13, workers=1)
    pack(folder / "images", folder / "shards", options)
    return folder / "shards"
