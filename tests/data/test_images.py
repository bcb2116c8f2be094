"""Converting images: what arrives in the shard set is what a viewer shows."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from stylegan_dist.errors import InputError
from stylegan_dist.kinds import pixels as images
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.kinds.pixels import convert, decode, encode


def file_of(image: Image.Image, format="PNG", **parameters) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **parameters)
    return file.getvalue()


def pixels(data: bytes, *args, **options) -> np.ndarray:
    return np.asarray(convert(data, ImageOptions(*args, **options)).image)


def quadrants() -> Image.Image:
    """8 x 8: red, green / blue, black."""
    array = np.zeros((8, 8, 3), np.uint8)
    array[:4, :4, 0] = array[:4, 4:, 1] = array[4:, :4, 2] = 255
    return Image.fromarray(array)


@pytest.mark.parametrize(("options", "message"), [
    ({"resolution": 48}, "resolution must be one of 8, 16"),
    ({"resolution": 2048}, "resolution"),
    ({"resolution": 32, "channels": 2}, "channels"),
    ({"resolution": 32, "fit": "stretch"}, "fit"),
    ({"resolution": 32, "filter": "bicubic"}, "filter"),
    ({"resolution": 32, "encoding": "gif"}, "encoding"),
    ({"resolution": 32, "encoding": "jpg", "channels": 4}, "4 channels"),
    ({"resolution": 32, "quality": 0}, "quality"),
    ({"resolution": 32, "background": "blueish"}, "background"),
])
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        ImageOptions(**options).check()


def test_same_size_is_not_touched():
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(pixels(file_of(Image.fromarray(array)), 16), array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, format):
    upright = quadrants()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    parameters = {"lossless": True, "exif": exif} if format == "WEBP" else {"exif": exif}
    assert np.array_equal(pixels(file_of(stored, format, **parameters), 8), np.asarray(upright))


def test_damaged_exif_does_not_matter():
    data = file_of(quadrants(), exif=b"Exif\0\0nonsense")
    assert np.array_equal(pixels(data, 8), np.asarray(quadrants()))


def swapped_profile() -> bytes:
    """An sRGB-like profile whose red and blue primaries are exchanged: easy to see, and exact."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", profile, 128)[0]
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12], profile[red + 4 : red + 12],
    )
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize("alpha", [False, True])
def test_icc_profile_is_applied_and_not_written(alpha):
    image = quadrants()
    if alpha:
        image.putalpha(255)
    data = file_of(image, icc_profile=swapped_profile())
    converted = convert(data, ImageOptions(8, channels=4 if alpha else 3)).image
    expected = np.asarray(quadrants())[..., ::-1].astype(int)
    assert np.abs(np.asarray(converted)[..., :3] - expected).max() <= 3
    assert "icc_profile" not in Image.open(io.BytesIO(encode(converted, "png", 95))).info


@pytest.mark.parametrize("profile", [
    b"not a profile",
    ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
])
def test_unusable_or_equal_icc_profile_changes_nothing(profile):
    assert np.array_equal(pixels(file_of(quadrants(), icc_profile=profile), 8), np.asarray(quadrants()))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey(format):
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(pixels(file_of(Image.fromarray(values), format), 8, channels=1), expected)


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="no known range"):
        pixels(file_of(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_gives_the_promised_channels(mode, channels):
    format = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.new("L", (8, 8), 255).convert(mode)
    result = pixels(file_of(image, format), 8, channels=channels)
    assert result.shape == ((8, 8) if channels == 1 else (8, 8, channels))
    assert (result == 255).all()


def test_palette_with_transparency():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((3, 2), 1)
    data = file_of(image, transparency=0)
    result = pixels(data, 8, background="#ff0000")
    assert result[0, 0].tolist() == [255, 0, 0]
    assert result[2, 3].tolist() == [40, 50, 60]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_colour(mode):
    colour = 7 if mode == "L" else (7, 7, 7)
    data = file_of(Image.new(mode, (8, 8), colour), transparency=colour)
    assert (pixels(data, 8, background="white") == 255).all()
    assert (pixels(data, 8, channels=4) == 0).all()


def test_alpha_is_composited_on_the_background():
    data = file_of(Image.new("RGBA", (8, 8), (200, 100, 0, 128)))
    expected = np.array([200, 100, 0]) * (128 / 255) + np.array([0, 0, 255]) * (127 / 255)
    assert np.abs(pixels(data, 8, background="blue") - expected).max() <= 1


def test_resizing_does_not_mix_in_hidden_colours():
    array = np.zeros((16, 16, 4), np.uint8)
    array[:, ::2] = (255, 0, 0, 255)   # opaque red between
    array[:, 1::2] = (0, 255, 0, 0)    # transparent, secretly green
    result = pixels(file_of(Image.fromarray(array)), 8, channels=4, filter="box")
    assert np.abs(result.astype(int) - [255, 0, 0, 128]).max() <= 1


def test_hidden_colours_are_removed_without_resizing():
    array = np.full((8, 8, 4), 99, np.uint8)
    array[:4, :, 3] = 0
    result = pixels(file_of(Image.fromarray(array)), 8, channels=4)
    assert (result[:4] == 0).all()
    assert (result[4:] == 99).all()


@pytest.mark.parametrize("filter", ["box", "lanczos"])
def test_shrinking_averages_areas(filter):
    checkers = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    result = pixels(file_of(Image.fromarray(checkers.astype(np.uint8))), 8, channels=1, filter=filter)
    assert np.abs(result.astype(int) - 128).max() <= 2


def test_crop_takes_the_centre():
    array = np.zeros((8, 24, 3), np.uint8)
    array[:, 8:16] = 255
    assert (pixels(file_of(Image.fromarray(array)), 8) == 255).all()
    assert (pixels(file_of(Image.fromarray(array.transpose(1, 0, 2))), 8) == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pad_keeps_everything(channels):
    data = file_of(Image.new("RGB", (32, 16), "black"))
    result = pixels(data, 16, channels=channels, fit="pad", background="red")
    border = {1: 76, 3: [255, 0, 0], 4: [0, 0, 0, 0]}[channels]
    inside = {1: 0, 3: [0, 0, 0], 4: [0, 0, 0, 255]}[channels]
    assert (result[:4] == border).all()
    assert (result[12:] == border).all()
    assert (result[4:12] == inside).all()


def test_pad_of_an_extreme_shape():
    assert pixels(file_of(Image.new("RGB", (1000, 1))), 8, fit="pad").shape == (8, 8, 3)


@pytest.mark.parametrize(("size", "fit", "enlarged"), [
    ((8, 8), "crop", False), ((7, 20), "crop", True), ((7, 20), "pad", False), ((7, 7), "pad", True),
])
def test_enlarged_images_are_told(size, fit, enlarged):
    assert convert(file_of(Image.new("RGB", size)), ImageOptions(8, fit=fit)).enlarged is enlarged


@pytest.mark.parametrize("damage", [
    b"", b"no image at all", file_of(quadrants())[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
])
def test_unreadable_bytes(damage):
    with pytest.raises(ValueError, match=r"\w") as caught:
        convert(damage, ImageOptions(8))
    assert "0x" not in str(caught.value)  # no memory address: the reason goes into the index


def test_pixel_limit(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(ValueError, match="limit of 63"):
        convert(file_of(quadrants()), ImageOptions(8))


@pytest.mark.parametrize("encoding", ["png", "webp", "jpg"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_encode_and_decode(encoding, channels):
    if (encoding, channels) == ("jpg", 4):
        pytest.skip("refused by ImageOptions.check")
    options = ImageOptions(16, channels=channels, encoding=encoding)
    rows, columns = np.indices((16, 16))
    array = np.stack([rows * 16, columns * 16, rows + columns, 255 - rows * 16], axis=-1).astype(np.uint8)
    for image in (Image.fromarray(array), Image.fromarray(array[..., :3])):  # with and without transparency
        converted = convert(file_of(image), options).image
        data = encode(converted, options.encoding, options.quality)
        decoded = decode(data, channels, 16)
        assert decoded.shape == (channels, 16, 16)
        assert decoded.dtype == np.uint8
        expected = np.asarray(converted).reshape(16, 16, channels).transpose(2, 0, 1).astype(int)
        assert np.abs(decoded - expected).max() <= (30 if encoding == "jpg" else 0)


@pytest.mark.parametrize(("data", "message"), [
    (b"junk", "not an image"),
    (file_of(Image.new("RGB", (8, 16))), "8 x 16 pixels instead of 8 x 8"),
    (file_of(Image.new("L", (8, 8))), "mode L instead of RGB"),
    (file_of(quadrants())[:-30], r"\w"),
])
def test_decode_refuses(data, message):
    with pytest.raises(ValueError, match=message):
        decode(data, 3, 8, strict=True)
