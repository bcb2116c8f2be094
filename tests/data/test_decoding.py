"""Decoding into a batch's buffer gives what Pillow gives, and refuses what is not such an image."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from stylegan_dist.data.decoding import decode_into


def picture(channels: int, size=(48, 48)) -> Image.Image:
    """Smooth colours with some noise, as photos have."""
    rng = np.random.default_rng(channels)
    x, y = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 3, size[1]))
    planes = [127 + 90 * np.sin(x * (c + 1) + y) + rng.normal(0, 9, x.shape) for c in range(channels)]
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(("channels", "format", "options"), [
    (1, "JPEG", {"quality": 90}), (1, "PNG", {}),
    *((3, "JPEG", {"quality": quality, "subsampling": s}) for quality in (30, 95) for s in (0, 1, 2)),
    (3, "JPEG", {"progressive": True}), (3, "JPEG", {"keep_rgb": True}), (3, "PNG", {}),
    (3, "WEBP", {"lossless": True}), (3, "WEBP", {"quality": 80}), (4, "PNG", {}), (4, "WEBP", {"lossless": True}),
])
def test_the_same_pixels_as_pillow(channels, format, options):
    data = encoded(picture(channels), format, **options)
    batch = np.full((3, 48, 48, channels), 77, np.uint8)
    decode_into(data, batch[1])
    expected = np.asarray(Image.open(io.BytesIO(data)).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    assert np.array_equal(batch[1], expected.reshape(48, 48, channels))
    assert (batch[[0, 2]] == 77).all(), "only its own place"


@pytest.mark.parametrize(("data", "message"), [
    (encoded(picture(3, (48, 32)), "JPEG"), "48 x 32 pixels instead of 48 x 48"),
    (encoded(picture(3, (64, 64)), "PNG"), "64 x 64 pixels instead of 48 x 48"),
    (encoded(picture(1), "JPEG"), "mode L instead of RGB"),
    (encoded(picture(3), "JPEG")[:-100], "truncated"),
    (encoded(picture(3), "JPEG")[:30], "."),
    (encoded(picture(3), "PNG")[:-100], "truncated|broken"),
    (b"\xff\xd8\xff no image", "not an image"),
    (b"", "not an image"),
])
def test_refused(data, message):
    with pytest.raises(ValueError, match=message):
        decode_into(data, np.empty((48, 48, 3), np.uint8))


def test_bombs_are_refused_by_their_header():
    """30,000 x 30,000 pixels from a few kilobytes would be 2.7 GB."""
    bomb = encoded(Image.new("1", (30000, 30000)), "PNG")
    assert len(bomb) < 200_000
    began = time.process_time()
    with pytest.raises(ValueError, match=r"pixels"):
        decode_into(bomb, np.empty((48, 48, 3), np.uint8))
    assert time.process_time() - began < 0.1
