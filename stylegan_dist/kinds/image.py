"""Samples that are 8-bit images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import PIL
from PIL import ImageColor
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.kinds.base import RESOLUTIONS, Decode, Kind, Packing, Sample, option, to_uint8
from stylegan_dist.kinds.decoding import decode_into
from stylegan_dist.kinds.pixels import ENCODINGS, FILTERS, FITS, MODES, Converted, Form, convert, encode
from stylegan_dist.kinds.values import Values
from stylegan_dist.ranges import Range
from stylegan_dist.records import shorten


@dataclass(frozen=True)
class Image(Kind):
    """8-bit images. The network sees [-1, 1]."""

    dtype = "uint8"
    noun = "images"

    def facts(self) -> dict[str, Any]:
        return {}

    def check(self, resolution: int, channels: int) -> None:
        if channels not in MODES:
            raise ValueError(f"no images with {shorten(channels)} channels exist here")

    def decoder(self, strict: bool) -> Decode:
        return partial(decode_into, strict=strict)

    def to_network(self, samples: Tensor) -> Tensor:
        return samples.float().div_(127.5).sub_(1)

    def from_network(self, values: Tensor) -> Tensor:
        return to_uint8(values)


@dataclass(frozen=True)
class ImageOptions(Packing):
    """The form that every image of a shard set is brought into."""

    resolution: int = option(text="side of the square", choices=RESOLUTIONS, number=int, metavar="PIXELS")
    channels: int = option(Form.channels, "1 grey, 3 colour, 4 colour with transparency", choices=MODES, number=int)
    fit: str = option(Form.fit, "crop: the largest square from the centre; pad: the whole image with borders", choices=FITS)
    filter: str = option(Form.filter, "how pixels are averaged: lanczos is sharper, box keeps hard edges free of ringing",
                         choices=FILTERS)
    background: str = option(Form.background, "a name or #rrggbb: below transparent pixels and in the borders of --fit pad; "
                             "with 4 channels both stay transparent", metavar="COLOUR")
    encoding: str = option("png", "png: lossless; webp: lossless, smaller, slower to write; jpg: smallest, and the loss is "
                           "learnt by the network", choices=ENCODINGS)
    quality: int = option(95, "of jpg", span=Range(1, 100), number=int, metavar="1..100")
    noun = "images"
    endings = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
               ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".tga")

    @property
    def raw_bytes(self) -> int:
        return self.channels * self.resolution**2

    def check(self) -> None:
        super().check()
        if self.encoding == "jpg" and self.channels == 4:
            raise InputError("encoding jpg cannot hold 4 channels: choose png or webp, or 3 channels")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            message = f"background must be a colour such as white or #80a0ff, not {self.background!r}"
            raise InputError(message) from None

    def converted(self, data: bytes) -> Converted:
        """The image of a file in the form of the set. Raises ValueError with the reason when it cannot be converted."""
        return convert(data, Form(self.resolution, self.channels, self.fit, self.filter, self.background))

    def sample(self, data: bytes) -> Sample:
        """Convert and encode an image file. Raises ValueError with the reason when it cannot be converted."""
        converted = self.converted(data)
        return Sample(encode(converted.image, self.encoding, self.quality), converted.enlarged)

    def kind(self, values: Values | None) -> Kind:
        return Image()

    def libraries(self) -> dict[str, str]:
        return {"pillow": PIL.__version__}
