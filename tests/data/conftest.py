"""Small sources of real images and shard sets, made on the fly."""

import shutil

import numpy as np
import pytest
from batches import STEPS, pack_random, take
from PIL import Image

from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

CLASSES = ("bird", "cat", "dog")


@pytest.fixture
def make_photos(tmp_path):
    """A function that writes `count` PNG files of random pixels into three sub-folders."""

    def make(count: int, size=(20, 16), name: str = "photos"):
        for number in range(count):
            path = tmp_path / name / CLASSES[number * len(CLASSES) // count] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path / name

    return make


@pytest.fixture
def photos(make_photos):
    """60 PNG files of 16 x 20 pixels in three sub-folders of 20."""
    return make_photos(60)


@pytest.fixture
def shard_set(photos, tmp_path):
    """`photos` packed at 16 pixels with classes into four shards of 15."""
    out = tmp_path / "set"
    pack(photos, out, PackOptions(ImageOptions(16), labels="folders", samples_per_shard=15, workers=2))
    return out


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    """Between attempts to reach a file."""
    monkeypatch.setattr("stylegan_dist.data.storage.FIRST_PAUSE", 0.01)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """44 random images of 8 pixels in seven shards, which the tests of the stream share."""
    return pack_random(tmp_path_factory.mktemp("stream"))


@pytest.fixture
def own_shards(shards, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(shards, tmp_path / "shards")


@pytest.fixture(scope="session")
def reference(shards):
    """Their batches, as one process reads them."""
    return take(shards, STEPS, mirror=True)
