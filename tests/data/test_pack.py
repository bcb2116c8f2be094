"""Packing: the same bytes whatever happens, and a clear message when it cannot go on."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from launching import wait_until
from PIL import Image

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.kinds.pixels import convert
from stylegan_dist.making.pack import PackOptions, pack, shard_size
from stylegan_dist.making.verify import verify

OPTIONS = PackOptions(ImageOptions(16), labels="folders", samples_per_shard=15, workers=2)


def contents(folder) -> dict[str, bytes]:
    """The files of a shard set, without the note about the source's times."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and path.name != ".source"}


def start_pack(source, out, code_before="", resolution=16, part=None):
    """`pack` in a process of its own, the leader of a process group."""
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.errors import InputError, Interrupted
{code_before}
try:
    pack({str(source)!r}, {str(out)!r},
         PackOptions(ImageOptions({resolution}), labels="folders", samples_per_shard=15, workers=2, part={part}))
except (InputError, Interrupted) as error:
    print(type(error).__name__, error)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished_shards(out) -> int:
    return len(list(out.glob(".pack/shard-*.json")))


def test_members_index_and_offsets(photos, shard_set):
    index = load_index(shard_set)
    assert (index.num_samples, index.resolution, index.channels, index.encoding) == (60, 16, 3, "png")
    assert index.classes == ["bird", "cat", "dog"]
    assert index.class_counts == [20, 20, 20]
    assert index.skipped == []
    assert [shard.name for shard in index.shards] == [f"shard-0000{i}.tar" for i in range(4)]
    assert not (shard_set / ".pack").exists()
    assert str(photos.parent) not in (shard_set / "index.json").read_text()
    originals = {
        convert(path.read_bytes(), OPTIONS.packing).image.tobytes(): index.classes.index(path.parent.name)
        for path in photos.rglob("*.png")
    }
    key = 0
    for shard in index.shards:
        data = (shard_set / shard.name).read_bytes()
        table = load_offsets(shard)
        assert set(table[:, 2]) == {0, 1, 2}  # the classes are mixed
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = tar.getmembers()
        assert [m.name for m in members] == [f"{key + i // 2:08d}.{('cls', 'png')[i % 2]}" for i in range(30)]
        assert all((m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644) for m in members)
        assert all(m.type == tarfile.REGTYPE and not m.pax_headers for m in members)
        assert [[m.offset_data, m.size] for m in members[1::2]] == table[:, :2].tolist()
        for (offset, size, label), member in zip(table.tolist(), members[::2], strict=True):
            pixels = Image.open(io.BytesIO(data[offset : offset + size])).tobytes()
            assert originals.pop(pixels) == label
            assert data[member.offset_data : member.offset_data + member.size] == b"%d" % label
        key += 15
    assert not originals


def test_plain_webdataset_reads_the_shards(shard_set):
    urls = sorted(str(path) for path in shard_set.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{i:08d}" for i in range(60)]
    assert all(sample["png"].shape == (16, 16, 3) for sample in samples)
    assert np.bincount([sample["cls"] for sample in samples]).tolist() == [20, 20, 20]


def test_same_bytes_for_any_number_of_workers_and_the_zip(photos, shard_set, tmp_path):
    pack(photos, tmp_path / "one", replace(OPTIONS, workers=1))
    assert contents(tmp_path / "one") == contents(shard_set)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in photos.rglob("*.png"):
            archive.write(path, path.relative_to(photos))
    pack(tmp_path / "photos.zip", tmp_path / "zipped", replace(OPTIONS, workers=3))
    of_zip, of_folder = contents(tmp_path / "zipped"), contents(shard_set)
    assert of_zip.pop("index.json") != of_folder.pop("index.json")  # the name of the source
    assert of_zip == of_folder


def test_kill_and_rerun_gives_the_same_bytes(make_photos, tmp_path, capsys):
    photos = make_photos(120, size=(200, 200))
    out = tmp_path / "killed"
    process = start_pack(photos, out, resolution=256)
    wait_until(lambda: finished_shards(out) >= 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "index.json").exists()
    assert 2 <= finished_shards(out) < 8
    options = replace(OPTIONS, packing=ImageOptions(256))
    pack(photos, out, options)
    assert "continuing" in capsys.readouterr().out
    pack(photos, tmp_path / "straight", options)
    assert contents(out) == contents(tmp_path / "straight")


def test_interrupt_keeps_finished_shards(make_photos, tmp_path):
    photos = make_photos(120, size=(200, 200))
    process = start_pack(photos, tmp_path / "out", resolution=256)
    wait_until(lambda: finished_shards(tmp_path / "out") >= 1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=600)
    assert "Interrupted" in output
    assert "Traceback" not in errors
    assert finished_shards(tmp_path / "out") >= 1
    assert not list((tmp_path / "out" / ".pack").glob("*.tmp"))


def test_damaged_resume_state_is_made_again(photos, shard_set, tmp_path):
    out = tmp_path / "out"
    process = start_pack(photos, out, "import os; from stylegan_dist.data.index import DatasetIndex\n"
                                      "DatasetIndex.save = lambda *_: os._exit(9)")
    process.communicate(timeout=600)
    assert process.returncode == 9
    assert finished_shards(out) == 4
    (out / "shard-00000.tar").unlink()
    os.truncate(out / "shard-00001.tar", 512)
    (out / ".pack" / "shard-00002.json").write_text("{")
    pack(photos, out, OPTIONS)
    assert contents(out) == contents(shard_set)


def test_running_again_does_nothing(photos, shard_set, capsys):
    before = {path: path.stat().st_mtime_ns for path in shard_set.iterdir()}
    index = pack(photos, shard_set, replace(OPTIONS, workers=1, max_skipped=5))
    assert index == load_index(shard_set)
    assert "already packed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in shard_set.iterdir()} == before


@pytest.mark.parametrize("change", [{"packing": ImageOptions(8)}, {"seed": 1}, {"labels": "none"}, {"shuffle": False}])
def test_other_options_need_overwrite(photos, shard_set, change):
    other = replace(OPTIONS, **change)
    with pytest.raises(InputError, match="--overwrite"):
        pack(photos, shard_set, other)
    pack(photos, shard_set, replace(other, overwrite=True, samples_per_shard=30))
    assert len(load_index(shard_set).shards) == 2
    assert len(contents(shard_set)) == 5
    assert verify(shard_set, workers=1) == []


def test_other_source_needs_overwrite(photos, shard_set):
    (photos / "cat" / "another.png").write_bytes((photos / "bird" / "000.png").read_bytes())
    with pytest.raises(InputError, match="another source or other options"):
        pack(photos, shard_set, OPTIONS)


def test_without_shuffle_the_order_is_that_of_the_names(photos, tmp_path):
    pack(photos, tmp_path / "out", replace(OPTIONS, shuffle=False))
    index = load_index(tmp_path / "out")
    labels = np.concatenate([load_offsets(shard)[:, 2] for shard in index.shards])
    assert labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20


def test_without_labels(photos, tmp_path):
    index = pack(photos, tmp_path / "out", replace(OPTIONS, labels="none"))
    assert index.classes is None
    assert index.class_counts is None
    assert set(load_offsets(index.shards[0])[:, 2]) == {-1}
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as tar:
        assert all(name.endswith(".png") for name in tar.getnames())


@pytest.mark.parametrize("encoding", ["jpg", "webp"])
def test_other_encodings(photos, tmp_path, encoding):
    image = ImageOptions(16, encoding=encoding, channels=1)
    pack(photos, tmp_path / "out", replace(OPTIONS, packing=image))
    assert verify(tmp_path / "out", workers=1) == []


def test_unreadable_files_are_listed(photos, tmp_path, capsys):
    (photos / "cat" / "bad.png").write_bytes(b"no image")
    index = pack(photos, tmp_path / "out", OPTIONS)
    assert index.num_samples == 60
    assert [entry["name"] for entry in index.skipped] == ["cat/bad.png"]
    assert "not an image" in index.skipped[0]["reason"]
    assert "'cat/bad.png': not an image" in capsys.readouterr().out
    assert verify(tmp_path / "out", workers=1) == []
    assert load_index(tmp_path / "out").skipped == index.skipped


def test_too_many_unreadable_files(photos, tmp_path):
    for number in range(5):
        (photos / "cat" / f"bad{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"of 65 files .*1 .*'cat/bad.*--max-skipped"):
        pack(photos, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "index.json").exists()
    index = pack(photos, tmp_path / "out", replace(OPTIONS, max_skipped=5))
    assert (index.num_samples, len(index.skipped)) == (60, 5)
    pack(photos, tmp_path / "straight", replace(OPTIONS, max_skipped=5))
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_shard_of_unreadable_files_only(photos, tmp_path):
    for number in range(15):
        (photos / f"bad{number:02d}.png").write_bytes(b"")
    options = replace(OPTIONS, labels="none", shuffle=False, max_skipped=15)
    index = pack(photos, tmp_path / "out", options)
    assert [shard.name for shard in index.shards] == [f"shard-0000{i}.tar" for i in range(1, 5)]
    assert verify(tmp_path / "out", workers=1) == []


def test_nothing_but_unreadable_files(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none .*read.*'a\.png'"):
        pack(tmp_path / "in", tmp_path / "out", replace(OPTIONS, labels="none"))


def test_enlarging_is_told(photos, tmp_path, capsys):
    pack(photos, tmp_path / "out", replace(OPTIONS, packing=ImageOptions(32)))
    assert "60 images were smaller than 32 pixels" in capsys.readouterr().out


def test_disk_full_leaves_no_half_shard(make_photos, tmp_path):
    photos = make_photos(60, size=(64, 64))
    # A limit on the size of a file stands in for a full disk: the same write fails, with EFBIG for ENOSPC.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    output, errors = start_pack(photos, tmp_path / "out", limit, resolution=64).communicate(timeout=600)
    assert f"InputError cannot write to {tmp_path / 'out'}" in output
    assert "File too large" in output
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob("*.tar"))
    assert not list((tmp_path / "out" / ".pack").glob("*.tmp"))


def test_out_that_cannot_be_used(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        pack(photos, tmp_path / "file" / "out", OPTIONS)
    with pytest.raises(InputError, match="is the source itself"):
        pack(photos, photos / "cat" / "..", OPTIONS)
    with pytest.raises(InputError, match="not empty"):
        pack(photos, tmp_path, replace(OPTIONS, overwrite=True))
    assert len(list(photos.rglob("*.png"))) == 60


def test_two_packers_do_not_meet(photos, tmp_path):
    slow = "import stylegan_dist.making.pack as p, time\np._finish = lambda *_: time.sleep(60)"
    slow = "import stylegan_dist.making.pack as p, time\np._finish = lambda *_: time.sleep(600)"
    process = start_pack(photos, tmp_path / "out", slow)
    wait_until(lambda: finished_shards(tmp_path / "out") == 4)
    try:
        with pytest.raises(InputError, match="another process"):
            pack(photos, tmp_path / "out", OPTIONS)
    finally:
        process.kill()
        process.communicate()
    pack(photos, tmp_path / "out", OPTIONS)


@pytest.mark.parametrize("order", [[(1, 1)], [(3, 3), (1, 3), (2, 3)], [(2, 2), (7, 7), (2, 7), (1, 2)]])
def test_parts_in_any_order_make_the_same_bytes(photos, shard_set, tmp_path, order):
    for part in order:
        assert pack(photos, tmp_path / "out", replace(OPTIONS, part=part)) is None
        assert not (tmp_path / "out" / "index.json").exists()
    assert finished_shards(tmp_path / "out") == 4
    pack(photos, tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(shard_set)
    pack(photos, tmp_path / "out", replace(OPTIONS, part=(1, 2)))  # of a finished set: nothing
    assert contents(tmp_path / "out") == contents(shard_set)


def test_parts_at_once_killed_and_repeated_make_the_same_bytes(make_photos, tmp_path):
    photos, out, options = make_photos(120, size=(200, 200)), tmp_path / "out", replace(OPTIONS, packing=ImageOptions(256))
    parts = [start_pack(photos, out, resolution=256, part=(k, 3)) for k in (1, 2, 3)]
    wait_until(lambda: finished_shards(out) >= 2)
    parts[0].kill()
    for process in parts:
        output, errors = process.communicate(timeout=600)
        assert "Error" not in output
        assert process is parts[0] or not process.returncode, errors
    pack(photos, out, replace(options, part=(1, 3)))
    assert finished_shards(out) == 8
    pack(photos, out, options)
    pack(photos, tmp_path / "straight", options)
    assert contents(out) == contents(tmp_path / "straight")


@pytest.mark.full
def test_a_part_keeps_out_itself_another_number_of_parts_and_the_whole(photos, shard_set, tmp_path):
    slow = "import stylegan_dist.making.pack as p, time\nrun = p.pool.run\n" \
           "def late(*args):\n    yield from run(*args)\n    time.sleep(600)\np.pool.run = late"
    process = start_pack(photos, tmp_path / "out", slow, part=(1, 2))
    wait_until(lambda: finished_shards(tmp_path / "out") == 2)
    try:
        for part in ((1, 2), (2, 3), None):
            with pytest.raises(InputError, match="another process"):
                pack(photos, tmp_path / "out", replace(OPTIONS, part=part))
        pack(photos, tmp_path / "out", replace(OPTIONS, part=(2, 2)))
    finally:
        process.kill()
        process.communicate()
    pack(photos, tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(shard_set)


def test_a_part_removes_nothing(photos, tmp_path):
    with pytest.raises(InputError, match="--overwrite"):
        pack(photos, tmp_path / "out", replace(OPTIONS, part=(1, 2), overwrite=True))


@pytest.mark.parametrize("change", [
    ("--part", "0/3"), ("--part", "4/3"), ("--part", "1"),
    ("--labels", "guess"), ("--seed", "-1"), ("--seed", f"{1 << 32}"), ("--samples-per-shard", "0"), ("--max-skipped", "-1"),
    ("--workers", "0"), ("--resolution", "17"), ("--quality", "0"), ("--channels", "2"), ("--background", "nothing"),
])
def test_wrong_options(photos, tmp_path, change):
    try:
        code = main(["pack", str(photos), str(tmp_path / "out"), "--resolution", "8", *change])
    except SystemExit as stop:  # of argparse
        code = stop.code
    assert code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("images", [1, 255, 256, 257, 2047, 2048, 5000, 50_000, 70_000, 1_281_167])
@pytest.mark.parametrize("raw_bytes", [64, 3072, 3 * 256**2, 3 * 1024**2])
def test_automatic_shard_size(images, raw_bytes):
    size = shard_size(images, raw_bytes)
    shards = -(-images // size)
    assert min(images, 256) <= size <= max(511, min(4096, (64 << 20) // raw_bytes))
    if images >= 2048:
        assert shards >= 8


def test_record_tells_how_it_was_packed(shard_set):
    record = json.loads((shard_set / "index.json").read_text())["packed_with"]
    assert record["source"] == "photos"
    assert record["source_images"] == 60
    assert record["options"]["resolution"] == 16
    assert "workers" not in record["options"]


def test_folders_whose_names_are_no_unicode(tmp_path):
    """As from an old system or archive: their classes can be read again."""
    for folder in ("caf\udce9", "tea"):
        (tmp_path / "source" / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "source" / folder / f"{number}.png")
    pack(tmp_path / "source", tmp_path / "out", replace(OPTIONS, workers=1))
    assert load_index(tmp_path / "out").classes == ["caf\\udce9", "tea"]
