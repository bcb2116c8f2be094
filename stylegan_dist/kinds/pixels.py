"""Pixels with Pillow: from any image file to the square 8-bit form of a shard set, and from a shard to an array."""

from __future__ import annotations

import contextlib
import io
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Pillow registers these plugins here; otherwise the first file would make it load all its plugins.
from PIL import (
    Image,
    ImageCms,
    ImageColor,
    ImageOps,
    Jpeg2KImagePlugin,  # noqa: F401
    TgaImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
    features,
)

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FITS = ("crop", "pad")
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
ENCODINGS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
# Formats that only hold pixels. Pillow can also start other programs (EPS), which no file may ask for.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
if features.check("jpg_2000"):
    FORMATS += ("JPEG2000",)
if features.check("avif"):  # since Pillow 11.3
    from PIL import AvifImagePlugin  # noqa: F401

    FORMATS += ("AVIF",)
_TGA_TYPES = ((2, 3, 10, 11), (1, 9))  # without and with a colour map
MAX_PIXELS = 1 << 26  # 67 million; Pillow itself only warns above 89 and refuses above 179
# Run-length matching after PNG's row filters: as small as zlib level 6 (1 to 6 % larger at 128 pixels and more)
# in a quarter of its time, and smaller and no slower than level 1.
PNG_STRATEGY = zlib.Z_RLE
_ORIENTATION = 0x0112
_TURNS = range(2, 9)
_EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


@dataclass(frozen=True)
class Form:
    """What an image becomes."""

    resolution: int               # pixels of a side
    channels: int = 3             # 1 grey, 3 RGB, 4 RGBA
    fit: str = "crop"             # "crop": the largest centred square; "pad": the whole image, with borders
    filter: str = "lanczos"       # "lanczos" or "box"; both average over the right area when shrinking
    background: str = "white"     # below transparent pixels, and the borders of "pad"; unused with 4 channels


class Converted(NamedTuple):
    """An image in the form of the shard set."""

    image: Image.Image    # mode L, RGB or RGBA, resolution x resolution
    enlarged: bool        # the file had fewer pixels than that


def convert(data: bytes, form: Form) -> Converted:
    """Bring an image file into a form.

    The image is turned upright (EXIF), converted to sRGB (embedded ICC profile; one that is damaged or
    does not fit the pixels is ignored), and reduced to 8 bits. Of an animation the first frame is taken.
    With 4 channels the borders of "pad" are transparent, and transparent pixels are black.

    Raises:
        ValueError: with the reason, when the bytes are not an image that can be converted.
    """
    with _reasons():
        return _convert(_open(data), form)


def converted(image: Image.Image, form: Form) -> Converted:
    """As `convert`, of an image that is open."""
    with _reasons():
        return _convert(image, form)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The image in a file; inside, what Pillow raises is a ValueError with the reason."""
    with _reasons(), _open(data) as image:
        yield image


def encode(image: Image.Image, encoding: str, quality: int) -> bytes:
    """The bytes of an image file. The same image gives the same bytes with the same version of Pillow."""
    if encoding == "png":
        parameters = {"compress_type": PNG_STRATEGY}
    elif encoding == "jpg":
        parameters = {"quality": quality, "subsampling": 0}
    else:
        parameters = {"lossless": True, "exact": True}
    file = io.BytesIO()
    image.save(file, ENCODINGS[encoding], **parameters)
    return file.getvalue()


def decode(data: bytes, channels: int, resolution: int, strict: bool = False) -> np.ndarray:
    """Decode an image of a shard: uint8 [C, H, W], possibly a read-only view of [H, W, C] memory.

    An image that has another form, or is to be turned (EXIF), becomes what `pack` makes of it by default. Shards that
    other tools wrote hold such images.

    Args:
        strict: refuse them instead, as in shards that `pack` wrote.

    Raises:
        ValueError: with the reason, when the bytes are not an image, or (strict) not of these channels and this resolution.
    """
    with _reasons():
        image = _open(data)
        mode = MODES[channels]
        # WebP has no grey, and leaves out an alpha channel that is opaque everywhere.
        plain = image.mode == mode or (image.format == "WEBP" and image.mode == "RGB")
        if strict and image.size != (resolution, resolution):
            raise ValueError(f"{image.width} x {image.height} pixels instead of {resolution} x {resolution}")
        if strict and not plain:
            raise ValueError(f"pixels of mode {image.mode} instead of {mode}")
        if not strict and (image.size != (resolution, resolution) or not plain or _is_turned(image)):
            image = _convert(image, Form(resolution, channels)).image
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def measure(data: bytes) -> tuple[int, int, str]:
    """Width, height and mode (Pillow's name) of an image, from its header.

    Raises:
        ValueError: with the reason, when the bytes are not an image.
    """
    with _reasons():
        image = _open(data)
    return image.width, image.height, image.mode


def exif_turns(exif: bytes) -> bool:
    """Whether the content of an EXIF block asks for the image to be turned. Damaged ones ask for nothing."""
    try:
        block = Image.Exif()
        block.load(exif)
        return block.get(_ORIENTATION, 1) in _TURNS
    except Exception:  # as in _upright
        return False


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Raises ValueError with the reason for what Pillow raises: its plugins have nearly every kind for damaged bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _open has the stricter limit
            yield
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its own text holds a memory address
        raise ValueError(f"not an image ({', '.join(FORMATS)})") from None
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("TGA",) if _is_tga(data) else FORMATS)
    if image.width * image.height > MAX_PIXELS:  # before anything is decoded
        raise ValueError(f"{image.width} x {image.height} pixels are more than the limit of {MAX_PIXELS}")
    return image


def _is_tga(data: bytes) -> bool:
    """Whether a file begins like a TGA, which has no signature: nothing else here has these values in these places."""
    return len(data) > 18 and data[1] < 2 and data[2] in _TGA_TYPES[data[1]] and data[16] in (8, 15, 16, 24, 32)


def _convert(image: Image.Image, form: Form) -> Converted:
    resolution = form.resolution
    image.load()
    image = _upright(image)
    width, height = image.size
    if form.fit == "crop":
        side = min(width, height)
        if width != height:
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        size = (resolution, resolution)
    else:
        side = max(width, height)
        size = (max(1, round(width * resolution / side)), max(1, round(height * resolution / side)))

    colour, alpha = _to_srgb(image)
    background = ImageColor.getrgb(form.background)[:3]
    if form.channels == 4:
        image = colour.convert("RGB")
        image.putalpha(alpha or 255)
        if alpha is not None and image.size == size:
            # Colours that nobody sees must not be learnt; resizing removes them anyway.
            image = Image.composite(image, Image.new("RGBA", size), alpha.point(lambda value: 255 if value else 0))
    else:
        if alpha is not None:
            base = Image.new("RGB", colour.size, background)
            base.paste(colour, mask=alpha)
            colour = base
        image = colour.convert(MODES[form.channels])
    if image.size != size:
        image = image.resize(size, FILTERS[form.filter])  # Pillow multiplies colours by alpha for this
    if image.size != (resolution, resolution):
        empty = (0, 0, 0, 0) if form.channels == 4 else background
        padded = Image.new("RGB" if form.channels == 1 else image.mode, (resolution, resolution), empty)
        padded = padded.convert(image.mode)
        padded.paste(image, ((resolution - size[0]) // 2, (resolution - size[1]) // 2))
        image = padded
    image.info = {}  # or a profile that no longer holds would be written with the image
    return Converted(image, side < resolution)


def _upright(image: Image.Image) -> Image.Image:
    if not _is_turned(image):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the pixels, which are fine
        return image


def _is_turned(image: Image.Image) -> bool:
    if image.format != "TIFF" and not any(key in image.info for key in _EXIF_KEYS):
        return False
    try:
        return image.getexif().get(_ORIENTATION, 1) in _TURNS
    except Exception:  # as in _upright
        return False


def _to_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Pixels of mode L or RGB in sRGB, and the alpha channel of mode L if there is one."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    elif "transparency" in image.info and image.mode in ("L", "RGB"):  # one colour means transparent
        image = image.convert({"L": "LA", "RGB": "RGBA"}[image.mode])

    alpha = None
    if image.mode in ("LA", "RGBA"):
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    if profile and image.mode in ("L", "RGB", "CMYK") and (transform := _profile_transform(profile, image.mode)):
        transformed = ImageCms.applyTransform(image, transform)
        image = transformed or image  # None only where it works in place
    return (image if image.mode in ("L", "RGB") else image.convert("RGB")), alpha


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes I;16*, or I for PGM) to 8 bits: 65535 becomes 255, rounded to nearest."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("integer pixels outside the range of 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


@lru_cache(maxsize=64)
def _profile_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From an ICC profile to sRGB; None when there is nothing to do or the profile is unusable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        fits = source.profile.xcolor_space.strip() == {"L": "GRAY"}.get(mode, mode)
        if not fits or ImageCms.getProfileDescription(source).startswith("sRGB"):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
