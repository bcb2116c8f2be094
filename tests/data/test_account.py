"""Every file that `pack` and `index` meet is accounted for: packed, or left out with a reason, in numbers that add up."""

from __future__ import annotations

import io
import json
import os
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archives import write_tar
from PIL import Image, features

from stylegan_dist.data.index import load_index
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.account import NAMED, Account
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.scan import index_shards
from stylegan_dist.making.sources import list_source, open_source
from stylegan_dist.records import parse_json

OPTIONS = PackOptions(ImageOptions(8), workers=1)


def image(number: int, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, form, **options)
    return file.getvalue()


def write_zip(path: Path, entries) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


def write_folder(path: Path, entries) -> Path:
    for name, data in entries:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def account_of(folder) -> dict:
    """From the index, with the numbers of files that were left out by reason."""
    record = load_index(folder).packed_with["account"]
    left_out = {group["reason"]: group["files"] for group in record["left_out"]}
    assert record["files"] == record["samples"] + record["labels"] + sum(left_out.values())
    return {**record, "left_out": left_out}


ENTRIES = [("a.png", image(1)), ("b/c.jpg", image(2, "JPEG")), ("notes.txt", b"text"), (".hidden.png", image(3)),
           ("__MACOSX/a.png", b""), ("bad.png", b"no image"), ("no ending", b"no image either"), ("b/.DS_Store", b"")]


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_the_numbers_add_up(write, tmp_path, capsys):
    pack(write(tmp_path / "source", ENTRIES), tmp_path / "out", OPTIONS)
    account = account_of(tmp_path / "out")
    hidden = account["left_out"].pop("hidden or left behind by a system")
    assert hidden == 3
    assert account["left_out"] == {"no images (.txt)": 1, "no images (by their content)": 1, "cannot be read": 1}
    assert (account["files"], account["samples"], account["labels"]) == (8, 2, 0)
    printed = capsys.readouterr().out
    assert "files: 8 (2 samples, 6 left out)" in printed
    assert "1 no images (.txt): 'notes.txt'" in printed


def test_what_is_no_file_is_counted_and_not_opened(tmp_path):
    source = write_folder(tmp_path / "source", [("a.png", image(1))])
    os.mkfifo(source / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(source / "s.png"))
    os.symlink(source, source / "circle")
    (source / "folder.png").mkdir()
    pack(source, tmp_path / "out", OPTIONS)
    assert account_of(tmp_path / "out")["left_out"] == {"pipes, sockets, devices, or links in a circle": 3}


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_names_that_come_twice(write, tmp_path):
    """The last one counts, as for those who unpack the archive."""
    with pytest.warns(UserWarning, match="Duplicate") if write is write_zip else _nothing():
        source = write(tmp_path / "source", [("a.png", image(1)), ("b.png", image(2)), ("a.png", image(3))])
    opened = open_source(source)
    assert [opened.read(item.name) for item in opened.items] == [image(3), image(2)]
    pack(source, tmp_path / "out", OPTIONS)
    assert account_of(tmp_path / "out")["left_out"] == {"replaced by a later file of the same name": 1}


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_content_decides_where_the_ending_says_nothing(tmp_path):
    names = {"a.jfif": "JPEG", "a.jpe": "JPEG", "noending": "PNG", "a.jpg.1": "JPEG", "a.jpg?w=500": "WEBP", "a.TGA": "TGA",
             "a.dat": "GIF", "b": "TIFF", "c": "BMP"}
    if features.check("avif"):
        names |= {"a.avif": "AVIF", "e": "AVIF"}
    if features.check("jpg_2000"):
        names |= {"a.jp2": "JPEG2000", "d": "JPEG2000"}
    others = [("e.txt", image(1)), ("f", b"GIF8 or not"), ("g", b""), ("h.heic", b"\0\0\0\x18ftypheic")]
    source = write_folder(tmp_path / "source", [*((name, image(9, form)) for name, form in names.items()), *others])
    index = pack(source, tmp_path / "out", OPTIONS)
    assert index.num_samples == len(names)
    assert index.skipped == []
    assert account_of(tmp_path / "out")["left_out"] == {
        "no images (.txt)": 1, "no images (by their content)": 2, "no images (.heic)": 1}


def test_an_account_is_bounded_and_can_be_read_again(tmp_path):
    account = Account(files=1000)
    for number in range(1000):
        account.leave_out(f"reason {number}", ["x" * 10_000 + "\udcff"])
    account.check()
    text = json.dumps(account.record())
    assert len(text) < 20_000
    assert parse_json(text) == account.record(), "no lone surrogates, which strict readers refuse"
    total = Account()
    for _ in range(3):
        total.add(account)
    total.check()
    assert total.files == 3000
    account.leave_out("more", ["than was met"])
    with pytest.raises(RuntimeError, match=r"1000 files .*1001 "):
        account.check()
    many = Account(files=7)
    many.leave_out("one reason", map(str, range(7)))
    assert many.record()["left_out"][0]["names"] == [str(n) for n in range(NAMED)]


def test_a_name_that_is_no_unicode(tmp_path):
    source = write_folder(tmp_path / "source", [("a.png", image(1))])
    for name, data in ((b"\xff.png", b"no image"), (b"\xfe.txt", b"")):
        with open(os.path.join(os.fsencode(source), name), "wb") as file:
            file.write(data)
    index = pack(source, tmp_path / "out", OPTIONS)
    assert [entry["name"] for entry in index.skipped] == ["\\udcff.png"]
    parse_json((tmp_path / "out" / "index.json").read_bytes())


def test_the_account_of_an_index(tmp_path, capsys):
    entries = [(f"{key}.{ending}", data) for key in "abc"
               for ending, data in (("png", image(1)), ("cls", b"0"), ("json", b"{}"), ("seg.png", image(2)))]
    write_tar(tmp_path / "0.tar", [*entries, ("d.json", b"{}"), ("d.cls", b"1"), ("._a.png", b"")])
    write_tar(tmp_path / "1.tar", entries)
    index_shards(str(tmp_path), workers=1)
    account = account_of(tmp_path)
    assert (account["files"], account["samples"], account["labels"]) == (27, 6, 6)
    assert sorted(account["left_out"].values()) == [1, 1, 6, 7]
    assert "files: 27 (6 samples, 6 with labels, 15 left out)" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["vanished", "grown"])
def test_a_source_that_changes_while_it_is_packed(fault, tmp_path):
    source = write_folder(tmp_path / "source", [("a.png", image(1)), ("b.png", image(2))])
    listing = list_source(source)
    if fault == "vanished":
        (source / "b.png").unlink()
    else:
        (source / "b.png").write_bytes(image(2) + b"more")
    index = pack(source, tmp_path / "out", OPTIONS, listing)
    assert index.num_samples == 1
    [skipped] = index.skipped
    assert ("No such file" if fault == "vanished" else "it has changed") in skipped["reason"]


def test_an_index_of_other_tools_is_not_overwritten(tmp_path):
    write_tar(tmp_path / "shard-00000.tar", [("a.png", image(1))])
    index_shards(str(tmp_path), workers=1)
    source = write_folder(tmp_path / "source", [("a.png", image(1))])
    from dataclasses import replace

    with pytest.raises(InputError, match="other tools"):
        pack(source, tmp_path, replace(OPTIONS, overwrite=True))
    assert (tmp_path / "shard-00000.tar").is_file()
