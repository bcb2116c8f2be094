"""The global order: every sample once per epoch, a pure function of the image number, quick to enter anywhere."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from batches import locate
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_dist.data.order import GlobalOrder

LAYOUTS = [(1,), (2,), (7,), (1, 1, 1), (3, 1), (1, 5, 2), (4, 4, 4), (2, 9, 1, 1), (0, 3, 0, 2), (13, 11)]
LANES = (1, 2, 3, 4, 8, 64)
BLOCKS = (1, 2, 3, 5, 100)
SMALL = list(itertools.product(LAYOUTS, LANES, BLOCKS, (0, 1)))


def samples_of(layout) -> list[tuple[int, int]]:
    return [(shard, sample) for shard, count in enumerate(layout) for sample in range(count)]


def test_every_sample_once_per_epoch():
    for layout, lanes, block, seed in SMALL:
        order = GlobalOrder(layout, seed, lanes, block)
        n = sum(layout)
        for epoch in (0, 1, 2, 10**9):
            assert sorted(locate(order, epoch * n, n)) == samples_of(layout), (layout, lanes, block, seed, epoch)


@pytest.mark.full
def test_any_way_of_asking_gives_the_same():
    """Cold or warm, one by one or together, forwards, backwards or at random: a function of the number alone."""
    for layout, lanes, block, seed in SMALL[::2]:  # one seed
        n = 3 * sum(layout) + 2
        expected = locate(GlobalOrder(layout, seed, lanes, block), 0, n)
        warm = GlobalOrder(layout, seed, lanes, block)
        numbers = np.random.default_rng(seed).permutation(n)
        for image in itertools.chain(range(n), reversed(range(n)), numbers.tolist()):
            assert locate(warm, image, 1) == [expected[image]], (layout, lanes, block, seed, image)
        for first in range(0, n, 5):
            cold = GlobalOrder(layout, seed, lanes, block)
            assert locate(cold, first, min(7, n - first)) == expected[first:first + 7]


def test_batches_of_readers_concatenate_to_the_line():
    """Rank r of N and reader w of W see parts; put together they are the line, also across epochs."""
    expected = locate(GlobalOrder((13, 7, 9), 4, 8, 5), 0, 96)
    for parts in (1, 2, 3, 4, 6):
        orders = [GlobalOrder((13, 7, 9), 4, 8, 5) for _ in range(parts)]
        seen = []
        for step in range(4):
            for part, order in enumerate(orders):
                seen += locate(order, step * 24 + part * 24 // parts, 24 // parts)
        assert seen == expected


def test_epochs_seeds_and_blocks_differ():
    n = 100
    lines = {}
    for seed, epoch in itertools.product((0, 1), (0, 1, 2)):
        lines[seed, epoch] = tuple(locate(GlobalOrder((25,) * 4, seed, 4, 25), epoch * n, n))
    assert len(set(lines.values())) == len(lines)
    one_shard = GlobalOrder((100,), 0, 1, 10)
    blocks = [tuple(sample % 10 for _, sample in locate(one_shard, first, 10)) for first in range(0, 200, 10)]
    assert len(set(blocks)) == 20, "each block of each epoch has a permutation of its own"


def test_lanes_and_blocks_bound_what_is_touched():
    """Neighbours in a batch come from different lanes; a lane stays inside one block at a time."""
    lanes, block, shards = 8, 50, 40
    order = GlobalOrder((100,) * shards, 0, lanes, block)
    first_blocks = locate(order, 0, lanes * block)
    for lane in range(lanes):
        assert len({shard for shard, _ in first_blocks[lane::lanes]}) == 1, "a block is a piece of one shard here"
    assert len({shard for shard, _ in first_blocks}) == lanes
    assert len({shard for shard, _ in locate(order, 0, lanes)}) == lanes


@pytest.mark.parametrize(("layout", "lanes", "block"), [
    ((1,), 64, 4096), ((3,), 64, 4096), ((2, 2), 64, 1), ((10, 10), 3, 4096), ((10, 10), 20, 7), ((10, 10), 19, 7),
], ids=["one sample", "lanes > samples", "block 1", "block > lane", "a lane each", "one long lane"])
def test_odd_sizes(layout, lanes, block):
    order = GlobalOrder(layout, 0, lanes, block)
    assert locate(order, 0, 0) == []
    n = sum(layout)
    assert order.num_samples == n
    line = locate(order, 0, 4 * n)
    for epoch in range(4):
        assert sorted(line[epoch * n:(epoch + 1) * n]) == samples_of(layout)


@given(
    layout=st.lists(st.integers(0, 3000), min_size=1, max_size=40).filter(sum),
    lanes=st.integers(1, 600), block=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), data=st.data(),
)
@settings(max_examples=60)
def test_large_sizes(layout, lanes, block, seed, data):
    n = sum(layout)
    epoch = data.draw(st.integers(0, 10**6))
    order = GlobalOrder(layout, seed, lanes, block)
    first = data.draw(st.integers(0, n - 1))
    count = data.draw(st.integers(1, 200))
    part = locate(order, epoch * n + first, count)
    assert all(0 <= sample < layout[shard] for shard, sample in part)
    if n <= 6000:
        line = locate(order, epoch * n, n)
        assert sorted(line) == samples_of(layout)
        assert part[:n - first] == line[first:first + count]
    else:
        within = part[:n - first]
        assert len(set(within)) == len(within), "no sample twice in an epoch"
    cold = GlobalOrder(layout, seed, lanes, block)
    assert locate(cold, epoch * n + first + count - 1, 1) == part[-1:]


def test_seek_to_image_1e9_of_100_000_shards():
    rng = np.random.default_rng(0)
    layout = rng.integers(900, 1100, 100_000)
    n = int(layout.sum())
    began = time.process_time()
    order = GlobalOrder(layout, 7, 64, 4096)
    batch = locate(order, 10**9, 256)
    seconds = time.process_time() - began
    assert seconds < 30, "a seek must not replay anything"
    assert all(0 <= sample < layout[shard] for shard, sample in batch)
    assert len(set(batch)) == 256
    assert locate(GlobalOrder(layout, 7, 64, 4096), 10**9 + 100, 3) == batch[100:103]
    # By hand, from the documented formulas.
    from stylegan_dist.randomness import permutation

    image = 10**9 + 100
    epoch, position = divmod(image, n)
    step, lane = divmod(position, 64)
    length, longer = divmod(n, 64)
    block, within = divmod(step, 4096)
    size = min(4096, length + (lane < longer) - block * 4096)
    number = (epoch * 64 + lane) * -(-(length + 1) // 4096) + block
    on_line = lane * length + min(lane, longer) + block * 4096 + permutation(7, "data.block", number, size)[within]
    shards = permutation(7, "data.shards", epoch, 100_000)
    ends = np.cumsum(layout[shards])
    at = int(np.searchsorted(ends, on_line, side="right"))
    assert batch[100] == (shards[at], on_line - (ends[at] - layout[shards[at]]))


def test_memory_stays_bounded():
    order = GlobalOrder((500,) * 10, 0, 16, 10)
    locate(order, 0, 12_000)
    assert order._orders.nbytes == 16 * 10
    assert len(order._epochs) <= 2
    many = GlobalOrder((10**6,) * 20, 0, 4096, 4096)
    locate(many, 0, 8 * 4096)
    assert many._orders.nbytes == 2 * 4096 * 4096, "32 MiB where 4,096 lanes have blocks of 4,096"


def test_walking_forwards_makes_each_permutation_once(monkeypatch):
    """The cache is as large as the walk needs it, also for batches smaller than the lanes."""
    from stylegan_dist.data import order as module

    made = []
    one, several = module.permutation, module.permutations
    monkeypatch.setattr(module, "permutation", lambda *args: made.append(args[2]) or one(*args))
    monkeypatch.setattr(module, "permutations", lambda *args: made.extend(f"block {n}" for n in args[2]) or several(*args))
    order = GlobalOrder((37, 41, 53), 0, 16, 3)
    for first in range(0, 800, 5):
        locate(order, first, 5)
    assert len(made) == len(set(made))
