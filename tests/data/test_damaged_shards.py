"""Damaged samples, shards and indices: the same replacements for everybody, or an error that says where."""

from __future__ import annotations

import itertools
import os
import re

import numpy as np
import pytest
import torch
from batches import ORDER, SAMPLES, STEPS, joined, locate, open_shards_of, open_stream, same, stream_of, take

from stylegan_dist.data.index import load_index, load_offsets
from stylegan_dist.data.order import GlobalOrder
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.kinds.pixels import decode


def first_place(folder, image: int = 0):
    """(shard, sample, offset, size) of an image of the line."""
    index = load_index(folder)
    shard, sample = locate(GlobalOrder([s.samples for s in index.shards], **ORDER), image, 1)[0]
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
    assert np.array_equal(batch["sample"][4].numpy(), decode(data, 3, 8))
    assert int(batch["label"][4]) == label


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
    (lambda path: path.with_suffix(".offsets.npy").write_bytes(b""), ".npy is damaged: the SHA-256 differs from the index (0 "),
], ids=["missing", "truncated", "altered table"])
def test_local_faults_on_two_ranks(own_shards, reference, damage, cause):
    """With reader processes: the rank that reads the shard says what is wrong, the other has its part as ever."""
    index = load_index(own_shards)
    path = own_shards / first_place(own_shards, image=6)[0].name
    damage(path)
    streams = [stream_of(index, **ORDER, batch=8, mirror=True, rank=rank, world_size=2, workers=1) for rank in range(2)]
    try:
        whole = next(streams[0])
        assert torch.equal(whole["sample"], reference[0]["sample"][:4])
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
        next(stream_of(index, **ORDER, batch=8))
    with pytest.raises(InputError, match=r"has 600 bytes, .* restore .*pack"):
        load_index(own_shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_shard(own_shards, workers):
    index = load_index(own_shards)
    shard = first_place(own_shards)[0]
    (own_shards / shard.name).unlink()
    stream = stream_of(index, **ORDER, batch=8, workers=workers)
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
    altered = rf"{own_shards / shard.offsets} is damaged: the SHA-256 differs .*: truncated or altered; restore it"  # at once
    for other in (table[:-1], table[::-1]):  # the second: other images and classes, which all decode
        np.save(own_shards / shard.offsets, other)
        with pytest.raises(InputError, match=altered):
            next(stream_of(index, **ORDER, batch=8))
    (own_shards / shard.offsets).unlink()
    with pytest.raises(InputError, match=rf"cannot read {own_shards / shard.offsets}: .*no such file.*6 attempts"):
        next(stream_of(index, **ORDER, batch=8))
    assert open_shards_of(own_shards) == 0


def test_a_disk_that_fails_is_a_user_error(own_shards, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(InputError, match=r"cannot read .*, sample \d+ at byte \d+: Input/output error.*6 attempts"):
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
