"""Tar files that somebody made to do harm, or damaged: an end within a bound, and errors of one kind."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_dist.cli import main
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.array import ArrayOptions
from stylegan_dist.making.containers import open_container
from stylegan_dist.making.scan import index_shards
from stylegan_dist.making.sources import open_source
from stylegan_dist.making.tar import BLOCK, TarError, members

END = bytes(2 * BLOCK)


def header(name: str = "a.png", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    return header("pax", len(records), kind) + padded(records)


def tar_of(names, form=tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 10
            tar.addfile(info, io.BytesIO(b"0123456789"))
    return file.getvalue()


@pytest.mark.parametrize("record", [
    b"0 a=bcd\n", b"1 a=b\n", b"2 a=b\n", b"00000000000000000000000000000000 a=b\n", b"9" * 5000 + b" a=b\n", b"-5 a=b\n",
    b"99 a=b\n", b"a=b\n", b"5 ab\n", b"\n", b" ", "\N{ARABIC-INDIC DIGIT SIX} a=b\n".encode(), b"1_0 a=b\n"])
def test_records_that_lead_nowhere(record):
    with pytest.raises(TarError, match="damaged extended header"):
        list(members(extended(record) + header() + END))


@pytest.mark.parametrize("size", ["-1", "1_0", "9" * 5000, "x", "", "1e3", "\N{ARABIC-INDIC DIGIT SIX}", str(2**70)])
def test_sizes_in_records(size):
    text = f" size={size}\n".encode()
    length = next(n for n in range(len(text), len(text) + 9) if len(str(n)) + len(text) == n)
    with pytest.raises(TarError, match=r"damaged tar header|ends inside"):
        list(members(extended(str(length).encode() + text) + header() + END))


def test_the_verbs_end(tmp_path, capsys):
    (tmp_path / "a.tar").write_bytes(extended(b"0 a=bcd\n") + header() + END)
    for verb in (["index"], ["pack", "--resolution", "8"]):
        assert main([*verb, str(tmp_path / "a.tar"), str(tmp_path / "out")]) == 2
        assert "damaged extended header" in capsys.readouterr().err


CHANGES = st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), min_size=1, max_size=4)


@given(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), CHANGES, st.integers(0, 8192),
       st.booleans())
@settings(max_examples=100)
def test_mutations_give_members_or_an_error(form, changes, end, mend):
    """Whatever is changed: no other exception, an end, and never a member beyond the file."""
    content = bytearray(tar_of(["a.png", "b/" * 60 + "c.png", *["é" * 120 + ".png"] * (form != tarfile.USTAR_FORMAT)], form))
    for place, value in changes:
        content[place % len(content)] = value
    if mend:  # the checksum of each changed header, so that what is behind it is reached
        for place, _ in changes:
            start = place % len(content) // BLOCK * BLOCK
            content[start + 148:start + 156] = b" " * 8
            content[start + 148:start + 156] = b"%06o\0 " % sum(content[start:start + BLOCK])
    data = bytes(content[:end] if end % 3 == 0 else content)
    with contextlib.suppress(TarError):
        for member in members(data):
            assert 0 <= member.offset <= len(data)
            assert member.offset + member.bytes <= len(data)


@given(st.binary(max_size=3000))
@settings(max_examples=50)
def test_any_bytes(data):
    with contextlib.suppress(TarError):
        list(members(data))


def test_archives_one_after_the_other():
    """What `cat a.tar b.tar` makes; tarfile ends at the first end mark."""
    both = tar_of(["a", "b"]) + tar_of(["c"])
    assert [member.name for member in members(both)] == ["a", "b", "c"]
    assert all(both[member.offset:member.offset + member.bytes] == b"0123456789" for member in members(both))
    for tail in (b"x" * BLOCK, b"x" * 100, tar_of(["c"])[:700]):
        with pytest.raises(TarError):
            list(members(tar_of(["a"]) + tail))


def test_checksums_of_signed_bytes():
    block = bytearray(header("\N{LATIN SMALL LETTER E WITH ACUTE}.png"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    assert [member.name for member in members(bytes(block) + END)] == ["\N{LATIN SMALL LETTER E WITH ACUTE}.png"]


def test_sparse_files_are_not_taken_for_whole_ones():
    with pytest.raises(TarError, match="sparse"):
        list(members(header(kind=tarfile.GNUTYPE_SPARSE) + END))
    [member] = members(extended(b"22 GNU.sparse.major=1\n") + header(size=10) + padded(b"0123456789") + END)
    assert member.bytes == -1


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.zip", b"\x1f\x8b\x08" + bytes(600), "compressed"), ("a.tar", b"7z\xbc\xaf\x27\x1c" + bytes(600), "compressed"),
    ("a.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(600), "compressed"), ("a.tar", b"BZh9" + bytes(600), "compressed"),
    ("a.rar", b"Rar!\x1a\x07" + bytes(600), "compressed"), ("a.zip", b"PK\3\4" + bytes(600), "cannot be read"),
    ("a.zip", b"", "neither"), ("a.tar", b"x" * 2000, "neither"), ("a.zip", b"PK\5\6" + bytes(18), "holds no images"),
    ("a.tar", bytes(10240), "holds no images"),
])
def test_what_is_neither(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_source(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_the_beginning_decides(tmp_path):
    """A tar that ends with a zip is a tar, and one that goes on as a zip is an error."""
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros((8, 8), np.float32))
    data = archive.getvalue()
    content = b"".join(header(f"{n}.npz", len(data)) + padded(data) for n in range(9)) + END
    (tmp_path / "a.tar").write_bytes(content)
    assert zipfile.is_zipfile(tmp_path / "a.tar"), "because of what its last member ends with"
    assert len(open_source(tmp_path / "a.tar", packing=ArrayOptions).items) == 9
    (tmp_path / "b.zip").write_bytes(tar_of(["a.png"]) + data)
    assert zipfile.is_zipfile(tmp_path / "b.zip")
    with pytest.raises(InputError, match="follows the end mark"):
        open_source(tmp_path / "b.zip")
    (tmp_path / "c").write_bytes(b"#!/bin/sh\n" + data)
    assert open_container(tmp_path / "c").list().keys() == {"a.npy"}
    (tmp_path / "d.zip").write_bytes(data + data)  # the table of contents at the end is that of the second
    with pytest.raises(InputError, match=f"{len(data)} bytes before its first file"):
        open_container(tmp_path / "d.zip").list()


def test_a_zip_that_begins_with_folders(tmp_path):
    """As `zip -r` and most other tools make it of a folder."""
    (tmp_path / "animals/cat").mkdir(parents=True)
    (tmp_path / "animals/cat/a.png").write_bytes(b"content")
    path = shutil.make_archive(str(tmp_path / "animals"), "zip", tmp_path, "animals")
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].is_dir()
    assert len(open_container(Path(path)).list()) == 1


@given(st.lists(st.tuples(st.integers(0, 499), st.integers(0, 255)), min_size=1, max_size=5))
@settings(max_examples=100)
def test_mutations_of_a_zip(tmp_path_factory, changes):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "é.png", "b/c.png"):
            archive.writestr(name, name * 20)
    content = bytearray(file.getvalue())
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "mutated.zip"
    path.write_bytes(content)
    try:
        source = open_source(path)
    except InputError:
        return
    for item in source.items:
        with contextlib.suppress(ValueError):
            source.read(item.name)


def test_pipes_are_refused(tmp_path):
    """Opening one that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe"):
        open_source(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe"):
        index_shards(str(tmp_path / "pipe"))
    (tmp_path / "shards").mkdir()
    os.mkfifo(tmp_path / "shards" / "a.tar")
    with pytest.raises(InputError, match="no plain file"):
        index_shards(str(tmp_path / "shards"))
    with pytest.raises(InputError, match="holds no images"):
        open_source(tmp_path / "shards")


def test_verify_of_a_pipe(small_shards, tmp_path, capsys):
    shards = shutil.copytree(small_shards, tmp_path / "set")
    (shards / "shard-00001.tar").unlink()
    os.mkfifo(shards / "shard-00001.tar")
    assert main(["verify", str(shards)]) == 2
    assert "shard-00001.tar: the shard cannot be read (it is a pipe or a device" in capsys.readouterr().out
