"""The stream: the same global batches whoever reads them, from wherever one starts, and clear errors."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from batches import joined, same
from launching import alive
from PIL import Image

from stylegan_dist.data.images import ImageOptions, decode
from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.data.pack import PackOptions, pack
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.errors import STOP_SIGNALS, InputError, LocalInputError

ORDER = {"seed": 5, "lanes": 4, "block": 3}
SAMPLES = 44


def pack_random(folder, channels: int = 3):
    """44 images of random pixels in three classes, in seven shards."""
    for number in range(SAMPLES):
        path = folder / "images" / "abc"[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    options = PackOptions(ImageOptions(8, channels), labels="folders", samples_per_shard=7, workers=1)
    pack(folder / "images", folder / "shards", options)
    return folder / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("stream"))


@pytest.fixture
def own_shards(shards, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(shards, tmp_path / "shards")


def open_stream(folder, **options) -> BatchStream:
    return BatchStream(load_index(folder), **{**ORDER, "batch": 8, **options})


def take(folder, count: int, **options) -> list:
    stream = open_stream(folder, **options)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


STEPS = 13  # 104 images: beyond the second epoch of 44


@pytest.fixture(scope="module")
def reference(shards):
    return take(shards, STEPS, mirror=True)


def test_what_a_batch_is(shards, reference):
    """The samples that the order names, in its order, with their classes and numbers."""
    index = load_index(shards)
    batches = take(shards, STEPS)
    from stylegan_dist.data.order import GlobalOrder

    places = GlobalOrder([s.samples for s in index.shards], **ORDER).locate(0, 8 * STEPS)
    reader = ShardReader(index)
    whole = joined(batches)
    assert whole.images.shape == (8 * STEPS, 3, 8, 8)
    assert (whole.images.dtype, whole.labels.dtype, whole.index.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert whole.index.tolist() == list(range(8 * STEPS))
    for image, label, place in zip(whole.images, whole.labels, places, strict=True):
        data, expected = reader.read(*place)
        assert np.array_equal(image.numpy(), decode(data, 3, 8))
        assert int(label) == expected
    epoch = whole.images[:SAMPLES].flatten(1)
    assert len({row.numpy().tobytes() for row in epoch}) == SAMPLES, "every image once"
    reader.close()


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_global_batches(shards, reference, world, workers):
    parts = [take(shards, STEPS, mirror=True, rank=rank, world_size=world, workers=workers) for rank in range(world)]
    for step in range(STEPS):
        assert same(joined([part[step] for part in parts]), reference[step])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 5, 6, 11, 12])
def test_resume_anywhere(shards, reference, workers, step):
    """On another number of ranks, too."""
    for world in (1, 2):
        parts = [take(shards, STEPS - step, mirror=True, rank=r, world_size=world, start=8 * step, workers=workers)
                 for r in range(world)]
        assert all(same(joined(part), old) for part, old in zip(zip(*parts, strict=True), reference[step:], strict=True))


def test_another_batch_size_goes_on_at_the_same_image(shards, reference):
    whole = joined(reference)
    part = take(shards, 3, mirror=True, start=40, batch=12)
    assert torch.equal(joined(part).images, whole.images[40:76])


def test_far_away(shards):
    a, b = take(shards, 2, start=8 * 10**9), take(shards, 2, start=8 * 10**9)
    assert same(joined(a), joined(b))
    assert a[0].index[0] == 8 * 10**9


def test_mirror_is_a_function_of_the_image_number(shards, reference):
    plain, mirrored = joined(take(shards, STEPS)), joined(reference)
    flipped = [not torch.equal(a, b) for a, b in zip(plain.images, mirrored.images, strict=True)]
    assert 0.25 < np.mean(flipped) < 0.75
    for a, b, flip in zip(plain.images, mirrored.images, flipped, strict=True):
        assert torch.equal(b, a.flip(2) if flip else a)
    assert any(flipped[i] != flipped[i + SAMPLES] for i in range(SAMPLES)), "another draw in each epoch"
    other = joined(take(shards, 1, mirror=True, seed=6))
    assert not torch.equal(other.images, mirrored.images[:8])


def test_grey_images(tmp_path):
    folder = pack_random(tmp_path, channels=1)
    one, two = take(folder, 3), take(folder, 3, workers=2)
    assert one[0].images.shape == (8, 1, 8, 8)
    assert same(joined(one), joined(two))


# Damage

def first_place(folder, image: int = 0):
    """(shard, sample, offset, size) of an image of the line."""
    from stylegan_dist.data.order import GlobalOrder

    index = load_index(folder)
    shard, sample = GlobalOrder([s.samples for s in index.shards], **ORDER).locate(image, 1)[0]
    offset, size, _ = load_offsets(index.shards[shard])[sample]
    return index.shards[shard], sample, int(offset), int(size)


def assert_one_line(message: str) -> None:
    assert "\n" not in message
    assert "Traceback" not in message
    assert "Error" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_named(own_shards, workers):
    shard, sample, offset, size = first_place(own_shards, image=20)
    with open(own_shards / shard.name, "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    stream = open_stream(own_shards, workers=workers)
    assert next(stream).index[0] == 0
    assert next(stream).index[0] == 8
    assert stream.take_replaced() == []
    batch = next(stream)
    [fault] = stream.take_replaced()
    assert stream.take_replaced() == []
    stream.close()
    assert fault.image == 20
    assert f"{own_shards / shard.name}, sample {sample} at byte {offset}: not an image" in str(fault)
    assert_one_line(str(fault))
    # The next sample of the shard stands in, with its own class.
    index = load_index(own_shards)
    reader = ShardReader(index)
    data, label = reader.read(index.shards.index(shard), (sample + 1) % shard.samples)
    reader.close()
    assert np.array_equal(batch.images[4].numpy(), decode(data, 3, 8))
    assert int(batch.labels[4]) == label


def spoil(folder, index, shard: int, samples) -> None:
    table = load_offsets(index.shards[shard])
    with open(folder / index.shards[shard].name, "r+b") as file:
        for sample in samples:
            file.seek(int(table[sample][0]))
            file.write(b"damage")


def test_replacements_are_the_same_for_all(own_shards):
    """For any ranks, readers and starting point; neighbours and the end of a shard included."""
    index = load_index(own_shards)
    spoil(own_shards, index, 1, [2, 3, 6])
    spoil(own_shards, index, 4, [0, 5, 6])
    reference = take(own_shards, STEPS, mirror=True)
    stream = open_stream(own_shards)
    for _ in range(STEPS):
        next(stream)
    faults = stream.take_replaced()
    stream.close()
    assert sum(fault.image < SAMPLES for fault in faults) == 6, "every sample once per epoch"
    takes = {(fault.place.split(", ")[0][-9:-4], int(re.search(r"sample (\d+) at", fault.place)[1])): fault.by
             for fault in faults}
    names = [shard.name[-9:-4] for shard in index.shards]
    assert takes == {(names[1], 2): 4, (names[1], 3): 4, (names[1], 6): 0,
                     (names[4], 0): 1, (names[4], 5): 1, (names[4], 6): 1}
    for world, workers, step in ((2, 1, 0), (4, 0, 3), (1, 3, 7)):
        parts = [take(own_shards, STEPS - step, mirror=True, rank=r, world_size=world, workers=workers, start=8 * step)
                 for r in range(world)]
        assert all(same(joined(part), old) for part, old in zip(zip(*parts, strict=True), reference[step:], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_only_the_rank_that_reads_it_fails(own_shards, workers):
    index = load_index(own_shards)
    shard, _, _, _ = first_place(own_shards, image=6)
    spoil(own_shards, index, index.shards.index(shard), range(shard.samples))
    take(own_shards, 1, rank=0, world_size=2, workers=workers)
    with pytest.raises(InputError, match=re.escape(shard.name)):
        take(own_shards, 1, rank=1, world_size=2, workers=workers)


@pytest.mark.parametrize(("damage", "cause"), [
    (lambda path: path.unlink(), "cannot open {path}: there is no such file (6 attempts"),
    (lambda path: os.truncate(path, 600), ": the file is damaged, it ends at byte 600 (6 attempts"),
    (lambda path: path.with_suffix(".offsets.npy").write_bytes(b""), ".npy: the SHA-256 differs from the index (0 bytes)"),
], ids=["missing", "truncated", "altered table"])
def test_local_faults_on_two_ranks(own_shards, reference, damage, cause):
    """With reader processes: the rank that reads the shard says what is wrong, the other has its part as ever."""
    index = load_index(own_shards)
    path = own_shards / first_place(own_shards, image=6)[0].name
    damage(path)
    streams = [BatchStream(index, **ORDER, batch=8, mirror=True, rank=rank, world_size=2, workers=1) for rank in range(2)]
    try:
        whole = next(streams[0])
        assert torch.equal(whole.images, reference[0].images[:4])
        with pytest.raises(LocalInputError) as caught:
            next(streams[1])
    finally:
        for stream in streams:
            stream.close()
    assert cause.format(path=path) in str(caught.value)
    assert path.stem in str(caught.value)
    assert_one_line(str(caught.value))


def test_a_shard_cut_short_while_training(own_shards):
    index = load_index(own_shards)
    for shard in index.shards:
        os.truncate(own_shards / shard.name, 600)
    with pytest.raises(InputError, match="is damaged"):
        next(BatchStream(index, **ORDER, batch=8))
    with pytest.raises(InputError, match=r"has 600 bytes, the index promises .* restore it or pack the data again"):
        load_index(own_shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_shard(own_shards, workers):
    index = load_index(own_shards)
    shard = first_place(own_shards)[0]
    (own_shards / shard.name).unlink()
    stream = BatchStream(index, **ORDER, batch=8, workers=workers)
    with pytest.raises(InputError) as caught:
        next(stream)
    stream.close()
    assert f"cannot open {own_shards / shard.name}: there is no such file (6 attempts" in str(caught.value)
    assert_one_line(str(caught.value))
    with pytest.raises(InputError, match=f"{shard.name} is missing: restore it"):
        load_index(own_shards)


def test_missing_and_foreign_offsets(own_shards):
    index = load_index(own_shards)
    shard = first_place(own_shards)[0]
    table = np.load(own_shards / shard.offsets)
    altered = rf"cannot read {own_shards / shard.offsets}: the SHA-256 differs .*: truncated or altered \(6 attempts"
    for other in (table[:-1], table[::-1]):  # the second: other images and classes, which all decode
        np.save(own_shards / shard.offsets, other)
        with pytest.raises(InputError, match=altered):
            next(BatchStream(index, **ORDER, batch=8))
    (own_shards / shard.offsets).unlink()
    with pytest.raises(InputError, match=rf"cannot read {own_shards / shard.offsets}: there is no such file \(6 attempts"):
        next(BatchStream(index, **ORDER, batch=8))
    assert open_shards_of(own_shards) == 0


def test_a_disk_that_fails_is_a_user_error(own_shards, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(InputError, match=r"cannot read .*, sample \d+ at byte \d+: Input/output error \(6 attempts"):
        next(open_stream(own_shards))


def test_a_bad_moment_of_a_file_system_changes_nothing(own_shards, reference, monkeypatch):
    """Files that are not there, or break off, now and then: as network file systems do."""
    calls = itertools.count()
    names = {name: getattr(os, name) for name in ("open", "pread")}

    def now_and_then(name):
        def call(*args, **options):
            if str(own_shards) in str(args[0]) or name == "pread":
                number = next(calls)
                if number % 7 == 3:
                    raise OSError(116, "Stale file handle")
                if number % 7 == 5 and name == "pread":
                    return names[name](*args, **options)[:-1]
            return names[name](*args, **options)
        return call

    for name in names:
        monkeypatch.setattr(os, name, now_and_then(name))
    assert all(same(a, b) for a, b in zip(take(own_shards, STEPS, mirror=True), reference, strict=True))
    assert next(calls) > 100


def test_index_errors(own_shards):
    path = own_shards / "index.json"
    text = path.read_text()
    path.write_text(text.replace(f'"num_samples": {SAMPLES}', f'"num_samples": {SAMPLES + 1}'))
    with pytest.raises(InputError, match="promises 45 samples, its shards hold 44"):
        load_index(own_shards)
    path.write_text(text[:100])
    with pytest.raises(InputError, match="is damaged"):
        load_index(own_shards)
    path.write_text(re.sub(r'"version": \d+', '"version": 99', text))
    with pytest.raises(InputError, match="has format version 99"):
        load_index(own_shards)
    path.write_text(text.replace('"name": "', '"name": "../', 1))
    with pytest.raises(InputError, match="not a plain file name"):
        load_index(own_shards)
    path.unlink()
    with pytest.raises(InputError, match="pack the images first"):
        load_index(own_shards)


# Resources

def test_memory_is_used_again_but_never_what_somebody_holds(shards, reference):
    stream = open_stream(shards, mirror=True)
    places = set()
    for expected in reference:
        batch = next(stream)
        assert same(batch, expected)
        places.add(batch.images.data_ptr())
        del batch
    assert len(places) <= 2, "gone, so its memory serves the next ones"
    held, parts = [], []
    again = open_stream(shards, mirror=True)
    for step in range(STEPS):  # a batch, a part of one, or an array of one keeps all of it
        batch = next(again)
        kind = (lambda b: b.images, lambda b: b.images[3:4, 1], lambda b: b.images.numpy()[5])[step % 3]
        held.append(kind(batch))
        parts.append(kind(reference[step]))
        del batch
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(held, parts, strict=True))
    stream.close()
    again.close()


def open_shards_of(folder) -> int:
    """Shards that this process has open."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        if os.path.islink(link := f"/proc/self/fd/{name}"):
            links.append(os.readlink(link))
    return sum(link.startswith(f"{folder}/") for link in links)


def test_no_shard_stays_open(own_shards, monkeypatch):
    stream = open_stream(own_shards)
    for _ in range(6):
        next(stream)
    assert open_shards_of(own_shards) == 7
    stream.close()
    assert open_shards_of(own_shards) == 0
    reader = ShardReader(load_index(own_shards))
    reader.read(0, 0)
    assert open_shards_of(own_shards) == 1
    del reader
    assert open_shards_of(own_shards) == 0

    monkeypatch.setattr("stylegan_dist.data.reader.OPEN_SHARDS", 2)
    limited, free = open_stream(own_shards, mirror=True), take(own_shards, STEPS, mirror=True)
    for expected in free:
        assert same(next(limited), expected)
        assert open_shards_of(own_shards) <= 2
    limited.close()


def test_readers_outlive_a_stop_request_and_end_with_the_stream(shards):
    """Slurm and Ctrl-C signal the readers as well; the step that is under way still needs them."""
    stream = open_stream(shards, workers=2)
    next(stream)
    readers = multiprocessing.active_children()
    assert len(readers) == 2
    for number in STOP_SIGNALS:
        for reader in readers:
            os.kill(reader.pid, number)
        time.sleep(0.05)
    for step in range(1, 30):
        assert next(stream).index[0] == 8 * step
    stream.close()
    assert not any(reader.is_alive() for reader in readers)


@pytest.mark.parametrize("before", ["next(stream)", "pass"], ids=["reading", "starting"])
def test_readers_end_when_the_trainer_is_killed(shards, before):
    """So that they do not hold on to the lock of the run's folder, and to the memory."""
    code = f"""
import multiprocessing, os, signal
from stylegan_dist.data.index import load_index
from stylegan_dist.data.stream import BatchStream
stream = BatchStream(load_index({str(shards)!r}), seed=0, lanes=4, block=3, batch=8, workers=2)
{before}
print(*(reader.pid for reader in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    assert dead.returncode == -signal.SIGKILL
    readers = [int(pid) for pid in dead.stdout.split()]
    deadline = time.monotonic() + 20

    assert len(readers) == 2
    while any(map(alive, readers)):
        assert time.monotonic() < deadline, "readers without a trainer must end"
        time.sleep(0.1)


def test_a_program_that_forgets_to_close_its_stream_ends(shards):
    code = f"""
from stylegan_dist.data.index import load_index
from stylegan_dist.data.stream import BatchStream
stream = BatchStream(load_index({str(shards)!r}), seed=0, lanes=4, block=3, batch=8, workers=2)
next(stream)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_waiting_is_measured(shards):
    stream = open_stream(shards)
    next(stream)
    assert 0 < stream.seconds_waited < 10
    assert iter(stream) is stream
    stream.close()
