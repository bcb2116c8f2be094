"""Shards that other tools made: the index finds what Python's tarfile finds, and damage is an error that says where."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from batches import stream_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from servers import http_server

from stylegan_dist.cli import main
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.errors import InputError
from stylegan_dist.making.scan import index_shards
from stylegan_dist.making.tar import TarError, members
from stylegan_dist.making.verify import verify


def png(number: int, size: int = 8, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, len(mode)), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return file.getvalue()


def write_foreign(folder: Path, shards: int = 3, samples: int = 7, labels: bool = True) -> list[Path]:
    """As the webdataset library writes them: a PAX header before every member, other members among the images."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        paths.append(folder / f"part-{shard:03d}.tar")
        with webdataset.TarWriter(str(paths[-1])) as writer:
            for sample in range(samples):
                number = shard * samples + sample
                writer.write({"__key__": f"some.folder/{'long-' * 30}{number}", "json": {"width": 8}, "png": png(number),
                              **({"cls": number % 3} if labels else {})})
    return paths


def expected_members(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as file:
        return [(info.name, info.offset_data, info.size) for info in file if info.isreg()]


def test_index_of_foreign_shards(tmp_path):
    paths = write_foreign(tmp_path / "set")
    before = [path.read_bytes() for path in paths]
    index = index_shards(str(tmp_path / "set"), checksums=True)
    assert index.shards[0].sha256
    read = load_index(tmp_path / "set")
    assert read == index
    assert (read.num_samples, read.resolution, read.channels, read.encoding) == (21, 8, 3, "png")
    assert (read.classes, read.class_counts) == (["0", "1", "2"], [7, 7, 7])
    for shard, path in zip(read.shards, paths, strict=True):
        pictures = [(offset, size) for name, offset, size in expected_members(path) if name.endswith(".png")]
        assert [tuple(row[:2]) for row in load_offsets(shard).tolist()] == pictures
    assert verify(tmp_path / "set") == []
    assert [path.read_bytes() for path in paths] == before
    stream = stream_of(read, seed=0, lanes=4, block=4, batch=21)
    batch = next(stream)
    stream.close()
    seen = {(image.numpy().tobytes(), int(label)) for image, label in zip(batch["sample"], batch["label"], strict=True)}
    assert seen == {(np.asarray(Image.open(io.BytesIO(png(n)))).transpose(2, 0, 1).tobytes(), n % 3) for n in range(21)}


def test_an_index_elsewhere(tmp_path):
    """Of files in several folders, and of a server: the shards stay where they are."""
    write_foreign(tmp_path / "sets" / "a")
    write_foreign(tmp_path / "sets" / "b", shards=2)
    index = index_shards(f"{tmp_path}/sets/{{a/part-*,b/part-{{000..001}}}}.tar", str(tmp_path / "index"))
    names = [f"a/part-00{n}.tar" for n in range(3)] + [f"b/part-00{n}.tar" for n in range(2)]
    assert [shard.name for shard in index.shards] == names
    assert load_index(tmp_path / "index").num_samples == 35
    assert verify(tmp_path / "index") == []
    with http_server(tmp_path / "sets") as server:
        remote = index_shards(f"{server.url}/a/part-*.tar", str(tmp_path / "remote"))
        assert [shard.bytes for shard in remote.shards] == [shard.bytes for shard in index.shards[:3]]
        assert all(shard.sha256 for shard in remote.shards)
        assert verify(tmp_path / "remote") == []
        stream = stream_of(load_index(tmp_path / "remote"), seed=0, lanes=2, block=4, batch=7,
                             cache=NodeCache(tmp_path / "cache", 10**9))
        assert next(stream)["sample"].shape == (7, 3, 8, 8)
        stream.close()
        with pytest.raises(InputError, match=r"say where the index of .* shall be"):
            index_shards(server.url)


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300),
                          st.binary(max_size=1500)), max_size=12),
       st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@settings(max_examples=60)
def test_members_are_those_of_tarfile(entries, form):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 0.5
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):  # a name too long for this format
                return
    content = file.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(info.offset_data, info.size) for info in tar]
        names = [info.name for info in tar]
    found = list(members(content))
    assert [(offset, size) for _, offset, size in found] == expected
    assert [name.rstrip("/") for name, _, _ in found] == [name.rstrip("/") for name in names]  # tarfile strips some


@pytest.mark.parametrize(("form", "name"), [
    (tarfile.USTAR_FORMAT, "first.png"), (tarfile.GNU_FORMAT, "x" * 90 + "/" + "y" * 90 + "/first.png"),
    (tarfile.PAX_FORMAT, "x" * 90 + "/" + "y" * 90 + "/first.png")], ids=["ustar", "gnu", "pax"])
def test_hard_links_are_samples(form, name, tmp_path, capsys):
    """tar stores a file with two names once; the other name is a link to the first."""
    path = tmp_path / "files" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(png(1))
    os.link(path, tmp_path / "files" / "second.png")
    (tmp_path / "files" / "third.png").symlink_to(path)
    (tmp_path / "linked").mkdir()
    with tarfile.open(tmp_path / "linked" / "a.tar", "w", format=form) as file:
        for member in (name, "second.png", "third.png"):
            file.add(tmp_path / "files" / member, f"./{member}" if member == "second.png" else member)
        again, elsewhere = tarfile.TarInfo("fourth.png"), tarfile.TarInfo("fifth.png")
        for link, target in ((again, "second.png"), (elsewhere, "nowhere.png")):
            link.type, link.linkname = tarfile.LNKTYPE, target
            file.addfile(link)
        assert [info.type for info in file.getmembers()[:3]] == [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE]
    index = index_shards(str(tmp_path / "linked"))
    assert index.num_samples == 3
    assert "2 samples have no image" in capsys.readouterr().out
    table = np.load(tmp_path / "linked" / "a.offsets.npy")
    assert (table == table[0]).all()
    assert verify(tmp_path / "linked") == []


def test_damage_says_where(tmp_path):
    path = write_foreign(tmp_path / "set", shards=1)[0]
    whole = path.read_bytes()
    places = expected_members(path)
    _, offset, size = places[4]
    for keep, what in ((offset + size // 2, "the tar file ends inside this member"), (offset - 512, "no end mark"),
                       (offset - 700, "the tar file ends inside this member|no end mark")):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError, match=rf"{path}.*, byte \d+: .*({what})"):
            index_shards(str(path))
    path.write_bytes(whole[:offset - 400] + b"\xff" + whole[offset - 399:])
    with pytest.raises(InputError, match=rf"{path}, byte {offset - 512}: damaged tar header"):
        index_shards(str(path))
    assert not (tmp_path / "set" / "index.json").exists()
    # Python's tarfile sees nothing wrong in a file that ends between two members.
    path.write_bytes(whole[:places[3][1] - 1536])
    assert len(expected_members(path)) < len(places)
    with pytest.raises(TarError):
        list(members(path.read_bytes()))


def tar_bytes(content: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", encoding="latin-1") as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return archive.getvalue()


@pytest.mark.parametrize(("content", "message"), [
    ({"a.png": png(0), "b.jpg": png(1)}, "several kinds"),
    ({"a.txt": b"x"}, "holds no image"),
    ({"a.png": png(0, 9)}, "9 x 9 pixels"),
    ({"a.png": b"nothing"}, "not an image"),
    ({"a.png": png(0), "a.cls": b"1", "b.png": png(1)}, "has no class"),
    ({"a.png": png(0), "a.cls": b"-1"}, "not a whole number"),
    ({"a.png": png(0), "a.PNG": png(1)}, "second image of the sample 'a'"),
])
def test_what_cannot_be_indexed(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(tar_bytes(content))
    with pytest.raises(InputError, match=message) as caught:
        index_shards(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_what_begins_like_something_else(tmp_path):
    """The name says tar; a member's name may begin like gzip."""
    content = tar_bytes({"\x1f\x8b.png": png(0)})
    for name, data in (("gzip", gzip.compress(content)), ("zip", b"PK\3\4" + bytes(2000))):
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(InputError, match=f"a.tar is no tar.*{name}.*unpack"):
            index_shards(str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(content)
    assert index_shards(str(tmp_path / "a.tar")).num_samples == 1


def test_sets_that_do_not_fit_together(tmp_path):
    write_foreign(tmp_path, shards=1)
    with tarfile.open(tmp_path / "zzz.tar", "w") as file:
        info = tarfile.TarInfo("a.png")
        info.size = len(png(0))
        file.addfile(info, io.BytesIO(png(0)))
    with pytest.raises(InputError, match=r"classes.*True and False"):
        index_shards(str(tmp_path))


def test_the_command(tmp_path, capsys):
    write_foreign(tmp_path / "set")
    assert main(["index", str(tmp_path / "set")]) == 0
    assert "21 images of 8 pixels, 3 classes in 3 shards" in capsys.readouterr().out
    assert json.loads((tmp_path / "set" / "index.json").read_text())["shards"][0]["sha256"] == ""
    assert main(["verify", str(tmp_path / "set")]) == 0
    assert main(["index", str(tmp_path / "set")]) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert main(["index", str(tmp_path / "set"), "--overwrite", "--checksums"]) == 0
    assert main(["index", str(tmp_path / "nothing")]) == 2
    assert "nothing does not exist" in capsys.readouterr().err


def test_a_class_may_have_zeros_before_it(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("a.png", png(0)), ("a.cls", b"07\n"), ("b.png", png(1)), ("b.cls", b"00")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    index_shards(str(tmp_path), workers=1)
    assert load_offsets(load_index(tmp_path).shards[0])[:, 2].tolist() == [7, 0]
    assert verify(tmp_path, workers=1) == []


def test_names_are_not_trusted(tmp_path):
    write_foreign(tmp_path / "set")
    index_shards(str(tmp_path / "set"), str(tmp_path / "index"))
    path = tmp_path / "index" / "index.json"
    text = path.read_text()
    for name in ("../part-000.tar", "/etc/passwd", "a/../../b.tar", "a//b", ""):
        path.write_text(text.replace("part-000.tar", name))
        with pytest.raises(InputError, match="not a plain file name"):
            load_index(tmp_path / "index")


def test_a_member_takes_microseconds(tmp_path):
    path = write_foreign(tmp_path, shards=1, samples=400, labels=False)[0]
    content = path.read_bytes()
    began = time.process_time()
    assert len(list(members(content))) == 800
    assert time.process_time() - began < 2
