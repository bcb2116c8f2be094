"""From the encoded samples of a shard to values in a batch's buffer.

A run must not depend on which decoders are installed. A faster decoder therefore decodes only files for which it gives
the same pixels as Pillow, bit for bit. Everything that it refuses goes to Pillow. JPEG: simplejpeg (libjpeg-turbo,
accurate DCT, smooth upsampling). PNG and WebP of the plain form that `pack` writes: imagecodecs (libpng, libwebp), where
it is installed. All else: Pillow, which also converts images of other forms in shards of other tools.
benchmarks/readers.py compares them.
"""

from __future__ import annotations

import importlib
import logging
import struct
import threading
from functools import cache, lru_cache
from types import ModuleType

import numpy as np
import simplejpeg

from stylegan_dist.kinds.pixels import decode, exif_turns

_JPEG_START = b"\xff\xd8\xff"
_JPEG_KINDS = {1: ("Gray", "GRAY"), 3: ("YCbCr", "RGB")}  # channels: colour space of the file, and wanted
_EXIF, _XMP, _XMP_ORIENTATION = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/", b"tiff:Orientation"
_PNG_COLOURS = {1: 0, 3: 2, 4: 6}           # channels: colour type
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_WEBP_STARTS = (b"WEBPVP8 ", b"WEBPVP8L")   # of one still image, without metadata


def decode_into(data: bytes, out: np.ndarray, strict: bool = False) -> None:
    """Decode an image of a shard.

    Args:
        data: PNG, JPEG or WebP. What is of another size or has other channels becomes what `pack` makes of it by default.
        out: uint8 [H, W, C], contiguous; undefined after an error.
        strict: refuse what has another form.

    Raises:
        ValueError: with the reason, when the bytes are not an image, or (strict) not of this size with these channels. The
            size is taken from the header, before anything is decoded.
    """
    height, width, channels = out.shape
    try:
        if data[:3] == _JPEG_START:
            kind, wanted = _JPEG_KINDS[channels]
            if simplejpeg.decode_jpeg_header(data)[:3] == (height, width, kind) and not _is_turned_jpeg(data):
                simplejpeg.decode_jpeg(data, wanted, buffer=out)
                return
        elif _is_plain_png(data, height, width, channels) and (library := _imagecodecs()):
            _decode_png(library, data, out[..., 0] if channels == 1 else out)
            return
        elif data[8:16] in _WEBP_STARTS and (library := _imagecodecs()):
            library.webp_decode(data, out=out)  # compares size and channels before it decodes
            return
    except Exception:  # damaged, or of a rare kind; each library has exceptions of its own
        pass
    out[...] = decode(data, channels, width, strict).transpose(1, 2, 0)


def _is_turned_jpeg(data: bytes) -> bool:
    """Whether the metadata before the pixels may ask for the image to be turned; Pillow then knows."""
    if data.startswith(getattr(_thread, "not_turned", b"-")):  # most files of a set begin alike
        return False
    at, blocks = 2, 0
    while data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xDA:  # the pixels
            _thread.not_turned = data[:at + 2]
            return False
        if marker == 0xE1:
            content = data[at + 4:end]
            if content.startswith(_EXIF):
                blocks += 1
                if blocks > 1 or exif_turns(content):
                    return True
            elif content.startswith(_XMP) and _XMP_ORIENTATION in content:
                return True
        elif not 0xC0 <= marker < 0xFF or 0xD0 <= marker < 0xD8:  # padding, or of no segment
            return True
        at = end
    return True


def _is_plain_png(data: bytes, height: int, width: int, channels: int) -> bool:
    """Of 8 bits, not interlaced, nothing but pixels between header and end: for other chunks the libraries differ."""
    if data[:29] != _png_header(height, width, channels):
        return False
    at = 33
    while data[at + 4:at + 8] == b"IDAT":
        at += 12 + int.from_bytes(data[at:at + 4], "big")
    return data[at:] == _PNG_END


def _decode_png(library: ModuleType, data: bytes, out: np.ndarray) -> None:
    """Into `out` through an array that stays: after an error png_decode (of 2025 and 2026) never lets go of its output."""
    if getattr(_thread, "shape", None) != out.shape:
        _thread.shape, _thread.pixels = out.shape, np.empty(out.shape, np.uint8)
    out[...] = library.png_decode(data, out=_thread.pixels)


_thread = threading.local()


@lru_cache(maxsize=16)
def _png_header(height: int, width: int, channels: int) -> bytes:
    header = struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, _PNG_COLOURS[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + header


@cache
def _imagecodecs() -> ModuleType | None:
    """Loaded when the first image needs it; None where there is none for this platform."""
    try:
        library = importlib.import_module("imagecodecs")
    except ImportError:
        return None
    logging.getLogger("imagecodecs").setLevel(logging.ERROR)  # libpng warns of what Pillow accepts without a word
    return library
