"""The stream: the same global batches whoever reads them, from wherever one starts, and clear errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from batches import ORDER, SAMPLES, STEPS, joined, locate, open_shards_of, open_stream, pack_random, same, take
from launching import alive, wait_until

from stylegan_dist.data.batches import BatchDataset
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.errors import STOP_SIGNALS
from stylegan_dist.kinds.pixels import decode


def test_what_a_batch_is(shards, reference):
    """The samples that the order names, in its order, with their classes and numbers."""
    index = load_index(shards)
    batches = take(shards, STEPS)
    from stylegan_dist.data.order import GlobalOrder

    places = locate(GlobalOrder([s.samples for s in index.shards], **ORDER), 0, 8 * STEPS)
    reader = ShardReader(index)
    whole = joined(batches)
    assert whole["sample"].shape == (8 * STEPS, 3, 8, 8)
    assert (whole["sample"].dtype, whole["label"].dtype, whole.index.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert whole.index.tolist() == list(range(8 * STEPS))
    for image, label, place in zip(whole["sample"], whole["label"], places, strict=True):
        data, expected = reader.read(*place)
        assert np.array_equal(image.numpy(), decode(data, 3, 8))
        assert int(label) == expected
    epoch = whole["sample"][:SAMPLES].flatten(1)
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


@pytest.mark.parametrize("workers", [0, 2])
def test_going_back_in_a_stream(shards, reference, workers):
    """And forward, in the middle of what readers have prepared."""
    stream = open_stream(shards, mirror=True, workers=workers)
    try:
        for begin in (0, 2, 1, 5):
            stream.go_to(8 * begin)
            for step in range(begin, begin + 3):
                assert same(next(stream), reference[step])
    finally:
        stream.close()


def test_batches_in_any_order(shards, reference):
    """Readers look some batches ahead, and the loader asks in order; what is asked for otherwise is the same, too."""
    dataset = BatchDataset(ShardReader(load_index(shards)), StreamPlan(**ORDER, batch=8, mirror=True))
    for step in (3, 3, 0, 12, 1, 2, 11):
        memory = torch.empty(dataset.layout.bytes, dtype=torch.uint8)
        assert same(dataset.load(8 * step, memory).batch, reference[step])


def test_another_batch_size_goes_on_at_the_same_image(shards, reference):
    whole = joined(reference)
    part = take(shards, 3, mirror=True, start=40, batch=12)
    assert torch.equal(joined(part)["sample"], whole["sample"][40:76])


def test_far_away(shards):
    a, b = take(shards, 2, start=8 * 10**9), take(shards, 2, start=8 * 10**9)
    assert same(joined(a), joined(b))
    assert a[0].index[0] == 8 * 10**9


def test_mirror_is_a_function_of_the_image_number(shards, reference):
    plain, mirrored = joined(take(shards, STEPS)), joined(reference)
    flipped = [not torch.equal(a, b) for a, b in zip(plain["sample"], mirrored["sample"], strict=True)]
    assert 0.25 < np.mean(flipped) < 0.75
    for a, b, flip in zip(plain["sample"], mirrored["sample"], flipped, strict=True):
        assert torch.equal(b, a.flip(2) if flip else a)
    assert any(flipped[i] != flipped[i + SAMPLES] for i in range(SAMPLES)), "another draw in each epoch"
    other = joined(take(shards, 1, mirror=True, seed=6))
    assert not torch.equal(other["sample"], mirrored["sample"][:8])


def test_grey_images(tmp_path):
    folder = pack_random(tmp_path, channels=1)
    one, two = take(folder, 3), take(folder, 3, workers=2)
    assert one[0]["sample"].shape == (8, 1, 8, 8)
    assert same(joined(one), joined(two))


# Resources


def test_memory_is_used_again_but_never_what_somebody_holds(shards, reference):
    stream = open_stream(shards, mirror=True)
    places = set()
    for expected in reference:
        batch = next(stream)
        assert same(batch, expected)
        places.add(batch["sample"].data_ptr())
        del batch
    assert len(places) <= 2, "gone, so its memory serves the next ones"
    held, parts = [], []
    again = open_stream(shards, mirror=True)
    for step in range(STEPS):  # a batch, a part of one, or an array of one keeps all of it
        batch = next(again)
        kind = (lambda b: b["sample"], lambda b: b["sample"][3:4, 1], lambda b: b["sample"].numpy()[5])[step % 3]
        held.append(kind(batch))
        parts.append(kind(reference[step]))
        del batch
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(held, parts, strict=True))
    stream.close()
    again.close()


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


@pytest.mark.parametrize("steps", [0, 1])
def test_readers_outlive_a_stop_request_and_end_with_the_stream(shards, steps):
    """Slurm and Ctrl-C signal the readers as well, also those that have only just started; the step still needs them."""
    stream = open_stream(shards, workers=2)
    for _ in range(steps):
        next(stream)
    readers = multiprocessing.active_children()
    assert len(readers) == 2
    for number in STOP_SIGNALS:
        for reader in readers:
            os.kill(reader.pid, number)
        time.sleep(0.05 * steps)
    for step in range(steps, 30):
        assert next(stream).index[0] == 8 * step
    stream.close()
    assert not any(reader.is_alive() for reader in readers)


@pytest.mark.parametrize("before", ["next(stream)", "pass"], ids=["reading", "starting"])
def test_readers_end_when_the_trainer_is_killed(shards, before):
    """So that they do not hold on to the lock of the run's folder, and to the memory."""
    code = f"""
import multiprocessing, os, signal
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
stream = BatchStream(load_index({str(shards)!r}), StreamPlan(0, 4, 3, 8), ReaderOptions(2))
{before}
print(*(reader.pid for reader in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, timeout=600)
    assert dead.returncode == -signal.SIGKILL
    readers = [int(pid) for pid in dead.stdout.split()]
    assert len(readers) == 2
    wait_until(lambda: not any(map(alive, readers)), "readers without a trainer to end")


def test_a_program_that_forgets_to_close_its_stream_ends(shards):
    code = f"""
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
stream = BatchStream(load_index({str(shards)!r}), StreamPlan(0, 4, 3, 8), ReaderOptions(2))
next(stream)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_waiting_is_measured(shards):
    stream = open_stream(shards)
    next(stream)
    assert 0 < stream.seconds_waited < 600
    assert iter(stream) is stream
    stream.close()
