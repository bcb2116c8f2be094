"""From the encoded samples of a shard to values in a batch's buffer.

Decoders may differ in the last bit of a pixel, and a run must not depend on what happens to be installed. So which
decoder takes a sample is a function of its bytes alone: JPEG simplejpeg (libjpeg-turbo, accurate DCT, smooth
upsampling); PNG, WebP and the JPEG that simplejpeg refuses Pillow. benchmarks/data.py compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import simplejpeg

from stylegan_dist.data.arrays import ArrayForm, decode_array
from stylegan_dist.data.images import decode

_JPEG_START = b"\xff\xd8\xff"
_JPEG_KINDS = {1: ("Gray", "GRAY"), 3: ("YCbCr", "RGB")}  # channels: colour space of the file, and wanted


def decoder(array: ArrayForm | None) -> Callable[[bytes, np.ndarray], None]:
    """What decodes the samples of a set: `decode_into` for images, `decode_array` for arrays."""
    return decode_into if array is None else partial(decode_array, array)


def decode_into(data: bytes, out: np.ndarray) -> None:
    """Decode an image of a shard.

    Args:
        data: PNG, JPEG or WebP.
        out: uint8 [H, W, C], contiguous; undefined after an error.

    Raises:
        ValueError: with the reason, when the bytes are not an image of this size with these channels. The size is
            taken from the header, before anything is decoded.
    """
    height, width, channels = out.shape
    if data[:3] == _JPEG_START and channels in _JPEG_KINDS:
        kind, wanted = _JPEG_KINDS[channels]
        try:
            if simplejpeg.decode_jpeg_header(data)[:3] == (height, width, kind):
                simplejpeg.decode_jpeg(data, wanted, buffer=out)
                return
        except ValueError:  # damaged, or of a rare kind
            pass
    out[...] = decode(data, channels, width).transpose(1, 2, 0)
