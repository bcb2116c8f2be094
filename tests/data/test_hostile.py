"""Archives that somebody made to do harm: names lead nowhere, links and devices are no samples, bombs do not go off."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from batches import stream_of
from PIL import Image

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index, read_index
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.decoding import decode_into
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.kinds.pixels import convert
from stylegan_dist.making.scan import index_shards
from stylegan_dist.making.verify import verify

NAMES = ("../../up.png", "a/../../../up.png", "/absolute.png", "//twice.png", "C:\\windows.png", "new\nline.png",
         "tab\t\x1b[31m.png", "nul-like%00.png", "x" * 20_000 + ".png", "d/" * 3000 + "deep.png",
         "\N{RIGHT-TO-LEFT OVERRIDE}gnp.png", "plain.png")
LINKS = {"link.png": tarfile.SYMTYPE, "hard.png": tarfile.LNKTYPE, "device.png": tarfile.CHRTYPE, "block.png": tarfile.BLKTYPE,
         "pipe.png": tarfile.FIFOTYPE, "folder.png": tarfile.DIRTYPE}


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, names=NAMES, corrupt=()) -> None:
    """Images with these names, in this order, and members that are no files."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            data = b"not an image" if name in corrupt else png(number)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, kind in LINKS.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)


def write_zip(path: Path, names=NAMES, corrupt=()) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for number, name in enumerate(names):
            file.writestr(name, b"not an image" if name in corrupt else png(number))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")


def colours(folder) -> list[int]:
    index = load_index(folder)
    stream = stream_of(index, seed=0, lanes=1, block=100, batch=index.num_samples)
    try:
        return sorted(next(stream)["sample"][:, 0, 0, 0].tolist())
    finally:
        stream.close()


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_packing_hostile_names(write, tmp_path, capsys):
    """Every image is packed under a name of ours; nothing is written but the shard set, and messages keep to their lines."""
    below = tmp_path / "some" / "folder"
    below.mkdir(parents=True)
    write(below / "source", corrupt=("new\nline.png",))
    before = everything_in(tmp_path)
    assert main(["pack", str(below / "source"), str(below / "out"), "--resolution", "8", "--max-skipped", "6",
                 "--workers", "1"]) == 0
    new = everything_in(tmp_path) - before
    assert all(name.startswith("some/folder/out") for name in new)
    assert colours(below / "out") == [number for number, name in enumerate(NAMES) if name != "new\nline.png"]
    for path in (below / "out").glob("*.tar"):
        with tarfile.open(path) as file:
            assert all(member.isreg() and member.name.replace(".", "").isalnum() for member in file)
    skipped = [one["name"] for one in read_index(below / "out").skipped]
    no_files = set(LINKS) - {"folder.png"} if write is write_tar else {"link.png"}
    assert sorted(skipped) == sorted({"new\nline.png", *no_files})
    printed = capsys.readouterr()
    assert "\x1b[31m" not in printed.out + printed.err
    assert not any(line.startswith("line.png") for line in (printed.out + printed.err).splitlines())


def test_indexing_hostile_names(tmp_path, capsys):
    """Of a tar file of others, which stays as it is: the samples are its files, whatever their names."""
    below = tmp_path / "some" / "folder"
    below.mkdir(parents=True)
    write_tar(below / "a.tar")
    before = everything_in(tmp_path)
    index_shards(str(below), workers=1)
    assert everything_in(tmp_path) - before == {"some/folder/a.offsets.npy", "some/folder/index.json"}
    assert f"{len(LINKS) - 1} samples have no image" in capsys.readouterr().out  # all but the folder
    assert colours(below) == list(range(len(NAMES)))
    assert verify(below, workers=1) == []


def test_names_in_messages_are_quoted(tmp_path):
    write_tar(tmp_path / "a.tar", names=("plain.png", "new\nline.cls"))
    with pytest.raises(InputError, match=r"member 'new\\nline.cls', byte \d+: the class is") as caught:
        index_shards(str(tmp_path), workers=1)
    assert "\n" not in str(caught.value)


def test_a_name_without_end(tmp_path):
    """An extended header of a megabyte."""
    write_tar(tmp_path / "a.tar", names=("plain.png", "x" * 10**6 + ".png"))
    with pytest.raises(InputError, match=r"byte \d+: an extended header of 10\d+ bytes"):
        index_shards(str(tmp_path), workers=1)
    assert main(["pack", str(tmp_path / "a.tar"), str(tmp_path / "out"), "--resolution", "8"]) == 2


def test_webp_bombs():
    """The largest that the header of a WebP can announce, 0.8 GB of pixels, and a real one of 50 MB: refused by their size."""
    file = io.BytesIO()
    Image.new("L", (4096, 4096)).save(file, "WEBP", lossless=True, method=0, quality=0)
    real = file.getvalue()
    assert len(real) < 10_000
    place = real.index(b"VP8L") + 9  # 14 bits for the width less one, and for the height
    largest = real[:place] + (2**28 - 1 | real[place + 3] >> 4 << 28).to_bytes(4, "little") + real[place + 4:]
    pixels = np.empty((8, 8, 3), np.uint8)
    peak = resident()
    for bomb, message in ((real, "4096 x 4096 pixels instead of 8 x 8"), (largest, r"268435456 pixels\) exceeds limit")):
        with pytest.raises(ValueError, match=message):
            decode_into(bomb, pixels, strict=True)
    with pytest.raises(ValueError, match=r"268435456 pixels\) exceeds limit"):
        decode_into(largest, pixels)
    with pytest.raises(ValueError, match=r"268435456 pixels\) exceeds limit"):
        convert(largest, ImageOptions(8))
    assert resident() - peak < 5e6, "not a row was decoded"


def resident() -> int:
    """Bytes of memory in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
