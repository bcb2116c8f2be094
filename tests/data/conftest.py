"""Small sources of real images, made on the fly."""

import io

import numpy as np
import pytest
from PIL import Image

from stylegan_dist.data.images import ImageOptions
from stylegan_dist.data.pack import PackOptions, pack


def encoded(array, format="PNG", **parameters) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, **parameters)
    return file.getvalue()


def random_image(seed: int, size=(20, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_photos(folder, count: int, classes=("bird", "cat", "dog"), size=(20, 16)):
    for number in range(count):
        path = folder / classes[number * len(classes) // count] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(random_image(number, size)))
    return folder


@pytest.fixture
def photos(tmp_path):
    """60 PNG files of 16 x 20 pixels in three sub-folders of 20."""
    return write_photos(tmp_path / "photos", 60)


@pytest.fixture
def shard_set(photos, tmp_path):
    """`photos` packed at 16 pixels with classes into four shards of 15."""
    out = tmp_path / "set"
    pack(photos, out, PackOptions(ImageOptions(16), labels="folders", samples_per_shard=15, workers=2))
    return out
