"""Shards of other tools: all that they hold is seen, and means in training what it means when it is packed."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from archives import write_tar
from batches import stream_of
from PIL import Image

from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import decoding
from stylegan_dist.kinds.decoding import decode_into
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.kinds.pixels import convert, measure
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.scan import index_shards
from stylegan_dist.making.sources import open_source
from stylegan_dist.making.survey import look
from stylegan_dist.making.verify import verify


def picture(mode: str = "RGB", size=(16, 16), number: int = 0) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(picture("L", size, number + 1))
    return image.convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(orientation: int, form: str = "JPEG", size=(16, 16), **options) -> bytes:
    image = picture(size=size)
    exif = image.getexif()
    exif[0x112] = orientation
    return encoded(image, form, exif=exif, **options)


ODD = {
    "grey jpeg": encoded(picture("L"), "JPEG"), "cmyk": encoded(picture("CMYK"), "JPEG"), "palette": encoded(picture("P")),
    "16 bits": encoded(picture("I;16")), "one bit": encoded(picture("1")), "alpha": encoded(picture("RGBA")),
    "grey and alpha": encoded(picture("LA")), "wide": encoded(picture(size=(24, 16)), "JPEG"),
    "small": encoded(picture(size=(9, 9))),
    "gif": encoded(picture("P"), "GIF"), "webp": encoded(picture("RGBA"), "WEBP", lossless=True), "tall webp": encoded(
        picture(size=(16, 40)), "WEBP"), "turned": turned(3), "turned png": turned(6, "PNG"), "turned webp": turned(8, "WEBP"),
    "turned, wide": turned(6, size=(24, 16)), **{f"turned {n}": turned(n) for n in range(2, 9)},
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ODD)
def test_the_reader_converts_what_pack_would(name, channels):
    out = np.empty((16, 16, channels), np.uint8)
    decode_into(ODD[name], out)
    expected = np.asarray(convert(ODD[name], ImageOptions(16, channels)).image).reshape(out.shape)
    assert np.array_equal(out, expected)


def test_turned_images_are_seen_wherever_the_metadata_stands():
    """Also behind other segments, in XMP alone, and with bytes that look like the beginning of the pixels before it."""
    plain = encoded(picture(), "JPEG")
    exif = turned(3)
    at = exif.index(b"\xff\xe1")
    block = exif[at:at + 2 + int.from_bytes(exif[at + 2:at + 4], "big")]
    comment = b"\xff\xfe\0\x06\xff\xda\xff\xd9"
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="3"/>'
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    upright = np.empty((16, 16, 3), np.uint8)
    decode_into(plain, upright)
    for inserted in (comment + block, segment, comment + segment, b"\xff" + block):
        for place in (2, 20):
            data = plain[:place] + inserted + plain[place:]
            out = np.empty_like(upright)
            decode_into(data, out)
            assert np.array_equal(out, np.asarray(convert(data, ImageOptions(16)).image))
            assert np.array_equal(out, upright[::-1, ::-1]) == (out != upright).any()


@pytest.mark.parametrize("data", [turned(1), encoded(picture(), "JPEG", exif=b"Exif\0\0damaged"), encoded(picture(), "JPEG"),
                                  encoded(picture(), "JPEG", comment=b"\xff\xe1")])
def test_upright_images_stay_with_the_fast_decoder(data, monkeypatch):
    monkeypatch.setattr(decoding, "decode", None)
    out = np.empty((16, 16, 3), np.uint8)
    decode_into(data, out)
    assert np.array_equal(out, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("data", [*ODD.values(), encoded(picture(), "JPEG", progressive=True), encoded(picture(), "WEBP"),
                                  encoded(picture(), "WEBP", lossless=True), turned(1)])
def test_a_look_sees_what_pillow_sees(data):
    shifted = b"before" + data + b"after"
    assert look(shifted, 6, len(data)) == measure(data)
    for end in (0, 10):
        with pytest.raises(ValueError, match=r"\w"):
            look(shifted, 6, end)


def test_an_index_says_what_is_in_the_shards(tmp_path, capsys):
    """The first image is grey, most are not: the form is that of most, and training gets every image."""
    data = [ODD["grey jpeg"], *(encoded(picture(number=n), "JPEG") for n in range(6)), ODD["wide"], ODD["cmyk"], turned(3)]
    write_tar(tmp_path / "a.tar", [(f"{n}.jpg", one) for n, one in enumerate(data)])
    index = index_shards(str(tmp_path), workers=1)
    assert (index.resolution, index.channels, index.num_samples) == (16, 3, 10)
    assert "3 of 10 images are not of 16 x 16 pixels and mode RGB" in capsys.readouterr().out
    forms = load_index(tmp_path).packed_with["forms"]
    assert {(form["width"], form["mode"]): form["images"] for form in forms} == {
        (16, "RGB"): 7, (16, "L"): 1, (24, "RGB"): 1, (16, "CMYK"): 1}
    assert verify(tmp_path, workers=1) == []
    stream = stream_of(load_index(tmp_path), seed=0, lanes=1, block=16, batch=10)
    batch = next(stream)
    assert stream.take_replaced() == []
    stream.close()
    seen = {image.numpy().tobytes() for image in batch["sample"]}
    pack(tmp_path / "a.tar", tmp_path / "packed", PackOptions(ImageOptions(16), workers=1))
    packed = load_index(tmp_path / "packed")
    stream = stream_of(packed, seed=0, lanes=1, block=16, batch=10)
    assert {image.numpy().tobytes() for image in next(stream)["sample"]} == seen
    stream.close()


def test_sizes_that_differ_from_image_to_image_are_for_pack(tmp_path):
    write_tar(tmp_path / "a.tar", [(f"{n}.png", encoded(picture(size=(16 + n, 16)))) for n in range(5)])
    with pytest.raises(InputError, match=r"only 1 of 5 images.*pack them instead"):
        index_shards(str(tmp_path))


def test_a_packed_set_is_strict(tmp_path):
    """What `pack` wrote has one form: another one is damage, and no image to convert."""
    write_tar(tmp_path / "a.tar", [(f"{n}.png", encoded(picture(number=n))) for n in range(4)])
    pack(tmp_path / "a.tar", tmp_path / "set", PackOptions(ImageOptions(16), workers=1))
    path = tmp_path / "set" / "index.json"
    path.write_text(path.read_text().replace('"resolution": 16,\n "channels"', '"resolution": 32,\n "channels"'))
    assert len(verify(tmp_path / "set", workers=1)) == 4


def classes_of(folder) -> list[int]:
    return np.concatenate([load_offsets(shard)[:, 2] for shard in load_index(folder).shards]).tolist()


def test_pack_takes_shards_with_their_classes(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", [entry for n in range(4) for entry in (
            (f"{n}.v2.png", encoded(picture(size=(20, 16)))), (f"{n}.v2.cls", b" %d\n" % (shard + n)), (f"{n}.json", b"{}"))])
    (tmp_path / "0_stats.json").write_text("{}")
    options = PackOptions(ImageOptions(16), shuffle=False, workers=1)
    expected = [shard + n for shard in range(3) for n in range(4)]
    index = pack(tmp_path, tmp_path.parent / "of-folder", options)
    assert index.class_counts == [1, 2, 3, 3, 2, 1]
    assert classes_of(tmp_path.parent / "of-folder") == expected
    pack(f"{tmp_path}/{{0..2}}.tar", tmp_path.parent / "of-pattern", options)
    pack(tmp_path / "0.tar", tmp_path.parent / "of-one", replace(options, labels="cls"))
    assert classes_of(tmp_path.parent / "of-pattern") == expected
    assert classes_of(tmp_path.parent / "of-one") == expected[:4]
    account = index.packed_with["account"]
    assert (account["files"], account["samples"], account["labels"]) == (37, 12, 12)
    for folder in ("of-folder", "of-pattern", "of-one"):
        shutil.rmtree(tmp_path.parent / folder)


@pytest.mark.parametrize(("text", "message"), [
    (b"9" * 5000, "whole number"), (b"-1", "whole number"), (b"", "whole number"), (b"1.5", "whole number"),
    (b"cat", "whole number"), ("\N{SUPERSCRIPT TWO}".encode(), "whole number"), (b"1000000", "below 1000000"),
    (None, "no class")])
def test_classes_that_are_none(text, message, tmp_path):
    files = [("a.png", ODD["small"]), ("a.cls", b"1"), ("b.png", ODD["small"])]
    write_tar(tmp_path / "a.tar", files + ([] if text is None else [("b.cls", text)]))
    with pytest.raises(InputError, match=message) as caught:
        index_shards(str(tmp_path))
    assert len(str(caught.value)) < 400
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "a.tar")
    assert open_source(tmp_path / "a.tar", "none").classes is None


def test_names_with_dots(tmp_path):
    """WebDataset ends a key at the first dot: an index would lose images, `pack` takes all."""
    names = ["IMG_2021.05.01.png", "IMG_2021.05.02.png", "a.png"]
    write_tar(tmp_path / "a.tar", [(name, encoded(picture())) for name in names])
    with pytest.raises(InputError, match=r"no image in 'IMG_2021.05.01.png'.*pack takes every image"):
        index_shards(str(tmp_path))
    assert [item.name for item in open_source(tmp_path / "a.tar").items] == sorted(names)


def test_concatenated_archives(tmp_path):
    parts = [write_tar(tmp_path / f"{n}.part", [(f"{n}.png", encoded(picture(number=n)))]).read_bytes() for n in range(3)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    assert index_shards(str(tmp_path)).num_samples == 3
    assert verify(tmp_path, workers=1) == []
    assert len(open_source(tmp_path / "a.tar").items) == 3


@pytest.mark.parametrize("name", ["photos [2024]", "set{1}", "what?", "my photos", "día 1", "a*b", "x@2"])
def test_paths_as_people_have_them(name, tmp_path):
    (tmp_path / name).mkdir()
    write_tar(tmp_path / name / "0.tar", [("a.png", encoded(picture())), ("a.cls", b"0")])
    assert index_shards(str(tmp_path / name), workers=1).num_samples == 1
    (tmp_path / name / "index.json").unlink()
    assert len(open_source(tmp_path / name).items) == 1
    assert len(open_source(tmp_path / name / "0.tar").items) == 1
