"""Decoding into a batch's buffer gives what Pillow gives, and refuses what is not such an image."""

from __future__ import annotations

import io
import struct
import sys
import time
import weakref
import zlib

import numpy as np
import pytest
from PIL import Image

from stylegan_dist.kinds import decoding
from stylegan_dist.kinds.decoding import decode_into

PACKED = [(1, "PNG", {}), (3, "PNG", {}), (4, "PNG", {}), (3, "WEBP", {"lossless": True}), (3, "WEBP", {"quality": 80}),
          (4, "WEBP", {"lossless": True})]  # what imagecodecs takes; of lossy WebP `pack` makes none, but `index` takes it


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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG of 48 x 48 pixels; header: bit depth, colour type, compression, filter, interlacing."""
    header = struct.pack(">II", 48, 48) + header
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def interlaced() -> bytes:
    """Its seven passes hold the pixels of ever finer grids, each row after a byte for its filter."""
    pixels = np.asarray(picture(3))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [b"\0" + row.tobytes() for y, x, down, right in passes for row in pixels[y::down, x::right]]
    return png(bytes([8, 2, 0, 0, 1]), b"".join(rows))


def one_colour_transparent() -> bytes:
    data = encoded(picture(3), "PNG")
    return data[:33] + chunk(b"tRNS", bytes(6)) + data[33:]


def outcome(data: bytes, channels: int, strict: bool = True) -> np.ndarray | str:
    out = np.empty((48, 48, channels), np.uint8)
    try:
        decode_into(data, out, strict)
    except ValueError as error:
        return str(error)
    return out


@pytest.fixture
def without_pillow(monkeypatch):
    def refuse(*_):
        raise ValueError("left to Pillow")

    monkeypatch.setattr(decoding, "decode", refuse)


@pytest.fixture(params=["with imagecodecs", "without imagecodecs"])
def any_platform(request, monkeypatch):
    if request.param == "without imagecodecs":
        monkeypatch.setitem(sys.modules, "imagecodecs", None)  # so that importing it fails
        decoding._imagecodecs.cache_clear()
        assert decoding._imagecodecs() is None
    yield
    monkeypatch.undo()
    decoding._imagecodecs.cache_clear()


@pytest.mark.usefixtures("any_platform")
@pytest.mark.parametrize(("channels", "format", "options"), [
    *PACKED, (1, "JPEG", {"quality": 90}),
    *((3, "JPEG", {"quality": quality, "subsampling": s}) for quality in (30, 95) for s in (0, 1, 2)),
    (3, "JPEG", {"progressive": True}), (3, "JPEG", {"keep_rgb": True}), (3, "PNG", {"dpi": (72, 72)}),
    (4, "WEBP", {"quality": 80}),
])
def test_the_same_pixels_as_pillow(channels, format, options):
    data = encoded(picture(channels), format, **options)
    batch = np.full((3, 48, 48, channels), 77, np.uint8)
    decode_into(data, batch[1])
    expected = np.asarray(Image.open(io.BytesIO(data)).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    assert np.array_equal(batch[1], expected.reshape(48, 48, channels))
    assert (batch[[0, 2]] == 77).all(), "only its own place"


@pytest.mark.usefixtures("any_platform")
@pytest.mark.parametrize("data", [interlaced(), one_colour_transparent()], ids=["interlaced", "one colour transparent"])
def test_rare_forms_have_the_pixels_of_pillow(data):
    out = np.empty((48, 48, 3), np.uint8)
    decode_into(data, out)
    assert np.array_equal(out, np.asarray(picture(3)))


@pytest.mark.usefixtures("without_pillow")
@pytest.mark.parametrize(("channels", "format", "options"), PACKED)
def test_the_usual_forms_do_without_pillow(channels, format, options):
    pytest.importorskip("imagecodecs", reason="not for this platform")
    decode_into(encoded(picture(channels), format, **options), np.empty((48, 48, channels), np.uint8))


@pytest.mark.parametrize(("channels", "format", "options"), [*PACKED, (3, "PNG", {"dpi": (72, 72)})])
def test_damage_is_what_it_is_for_pillow(channels, format, options, monkeypatch):
    """Cut off, changed or shortened anywhere: the fast decoder gives the pixels that Pillow gives, or the reason."""
    data, rng = encoded(picture(channels), format, **options), np.random.default_rng(0)
    damaged = []
    for at in [*range(8, 64), *rng.integers(64, len(data), 100).tolist(), *range(len(data) - 24, len(data))]:
        damaged += [data[:at], data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1:], data[:at] + data[at + 3:]]
    ours = [outcome(file, channels) for file in damaged]
    monkeypatch.setattr(decoding, "_imagecodecs", lambda: None)
    refused = 0
    for file, got in zip(damaged, ours, strict=True):
        expected = outcome(file, channels)
        assert np.array_equal(got, expected), file
        refused += isinstance(expected, str)
    assert refused > len(damaged) // (2 if format == "PNG" else 3)  # WebP has no checksums


@pytest.mark.usefixtures("without_pillow")
def test_checksums_of_png_are_compared():
    data = encoded(picture(3), "PNG")
    end = data.index(b"IEND") - 4
    for at in (30, end - 1, end - 6, end - 60):  # checksums of the header, the chunk and the pixels; pixels
        assert outcome(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:], 3) == "left to Pillow"


def test_a_damaged_png_leaves_the_batch_free():
    batch = np.empty((2, 48, 48, 3), np.uint8)
    gone = weakref.ref(batch)
    with pytest.raises(ValueError, match="truncated"):
        decode_into(encoded(picture(3), "PNG")[:-100], batch[1])
    del batch
    assert gone() is None


@pytest.mark.usefixtures("any_platform")
@pytest.mark.parametrize(("data", "message"), [
    (encoded(picture(3, (48, 32)), "JPEG"), "48 x 32 pixels instead of 48 x 48"),
    (encoded(picture(3, (64, 64)), "PNG"), "64 x 64 pixels instead of 48 x 48"),
    (encoded(picture(1), "JPEG"), "mode L instead of RGB"),
    (encoded(picture(3), "JPEG")[:-100], "truncated"),
    (encoded(picture(3), "JPEG")[:30], "."),
    (encoded(picture(3), "PNG")[:-100], "truncated|broken"),
    (encoded(picture(3).quantize(16), "PNG"), "mode P instead of RGB"),
    (encoded(picture(4), "PNG"), "mode RGBA instead of RGB"),
    (png(bytes([16, 0, 0, 0, 0]), bytes(48 * 97)), "mode I;16 instead of RGB"),
    (encoded(picture(4), "WEBP", lossless=True), "mode RGBA instead of RGB"),
    (encoded(picture(3), "WEBP")[:-100], "."),
    (encoded(picture(3), "WEBP", save_all=True, append_images=[picture(3, (48, 48)).rotate(90)])[:-100], "."),
    (b"\xff\xd8\xff no image", "not an image"),
    (b"", "not an image"),
])
def test_refused(data, message):
    with pytest.raises(ValueError, match=message):
        decode_into(data, np.empty((48, 48, 3), np.uint8), strict=True)


@pytest.mark.usefixtures("any_platform")
def test_one_bit_is_not_eight():
    assert outcome(encoded(picture(1).convert("1"), "PNG"), 1) == "pixels of mode 1 instead of L"


def black_webp(width: int, height: int) -> bytes:
    """Lossless, all codes of one symbol: not a bit for any pixel."""
    bits, length = 0, 0
    # signature, sizes - 1, alpha, version, no transform, no cache, no codes of codes; five codes of one symbol, 0
    for value, count in [(0x2f, 8), (width - 1, 14), (height - 1, 14), (0, 4), (0, 3), *[(0b0001, 4)] * 5]:
        bits, length = bits | value << length, length + count
    content = bits.to_bytes(16, "little")
    return b"RIFF" + struct.pack("<I", 12 + len(content)) + b"WEBPVP8L" + struct.pack("<I", len(content)) + content


@pytest.mark.usefixtures("any_platform")
@pytest.mark.parametrize(
    "bomb", [encoded(Image.new("1", (30000, 30000)), "PNG"), black_webp(16383, 16383)], ids=["PNG", "WebP"])
def test_bombs_are_refused_by_their_header(bomb):
    """30,000 x 30,000 pixels from a few kilobytes would be 2.7 GB."""
    assert len(bomb) < 200_000
    began = time.process_time()
    with pytest.raises(ValueError, match=r"pixels"):
        decode_into(bomb, np.empty((48, 48, 3), np.uint8))
    assert time.process_time() - began < 0.1
    assert not outcome(black_webp(48, 48), 3).any(), "it would be an image"
