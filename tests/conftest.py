"""The same environment for all tests, and data sets that several test files use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from clean_environment import ensure_home, forget
from clips import make_clips
from launching import ROOT, TIMEOUT
from PIL import Image

from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

forget(os.environ)  # before test files are imported; workers of pytest and processes of tests inherit it
ensure_home(os.environ)
torch.set_num_threads(1)
hypothesis.settings.register_profile(  # other work on the machine is no failure
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("unhurried")


# With a worker for each file, the longest must not be the last, where the other workers would wait for it.
LONGEST = ("test_engines.py", "test_train_job.py", "test_guard_engines.py", "test_hanging.py", "test_preflight.py",
           "test_resume.py", "test_launch.py", "test_remote.py", "test_build.py", "test_convolution.py", "test_compiled.py",
           "test_graphs.py", "test_precision.py", "test_discriminator_epilogue.py", "test_wandb_ending.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 RGB images of 16 pixels in 3 classes, in several shards."""
    return make_shards(tmp_path_factory.mktemp("labelled"), 16)


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of 8 pixels."""
    return make_shards(tmp_path_factory.mktemp("small"), 8)


@pytest.fixture(scope="session")
def clip_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of 6 grey frames of 16 pixels, which loop, in 2 classes."""
    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits of the demonstration: 1797 grey images of 32 pixels in 10 classes."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, ROOT / "shards/digits.py", folder / "png"], check=True, timeout=TIMEOUT)
    pack(folder / "png", folder / "shards", PackOptions(ImageOptions(resolution=32, channels=1), labels="folders", workers=1))
    return folder / "shards"


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
