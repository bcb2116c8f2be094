"""The same environment for all tests, and data sets that several test files use."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from clean_environment import ensure_home, forget
from PIL import Image

from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

forget(os.environ)  # before test files are imported; workers of pytest and processes of tests inherit it
ensure_home(os.environ)
torch.set_num_threads(1)
hypothesis.settings.register_profile(  # other work on the machine is no failure
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 RGB images of 16 pixels in 3 classes, in several shards."""
    return make_shards(tmp_path_factory.mktemp("labelled"), 16)


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of 8 pixels."""
    return make_shards(tmp_path_factory.mktemp("small"), 8)


def make_shards(folder: Path, resolution: int) -> Path:
    rng = np.random.default_rng(0)
    for i in range(60):
        path = folder / "images" / f"class{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = resolution // 4
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(size, 0).repeat(size, 1)
        Image.fromarray(pixels).save(path)
    options = PackOptions(ImageOptions(resolution=resolution), labels="folders", samples_per_shard=13, workers=1)
    pack(folder / "images", folder / "shards", options)
    return folder / "shards"
