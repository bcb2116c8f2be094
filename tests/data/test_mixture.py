"""Mixtures: fixed proportions, every set once per its epoch, and the same whoever asks."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest
from batches import locate, stream_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from servers import http_server

from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import load_index
from stylegan_dist.data.mixture import GROUP, MixedOrder, apportion, order_of
from stylegan_dist.data.order import GlobalOrder, StreamPlan
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack

LAYOUTS = ((40, 41, 30), (700, 9), (3,))


def mixed(weights=(0.5, 0.3, 0.2), seed: int = 1) -> MixedOrder:
    return MixedOrder([GlobalOrder(layout, seed, 4, 16) for layout in LAYOUTS], weights, seed)


def test_proportions_and_epochs():
    order = mixed()
    assert order.shares.tolist() == apportion((0.5, 0.3, 0.2), GROUP) == [2048, 1229, 819]
    line = locate(order, 0, 2 * GROUP)
    sets = Counter({0: 0, 1: 0, 2: 0})
    per_set: dict[int, list] = {0: [], 1: [], 2: []}
    for shard, sample in line:
        part = 0 if shard < 3 else 1 if shard < 5 else 2
        sets[part] += 1
        per_set[part].append((shard, sample))
    assert [sets[part] for part in range(3)] == [2 * share for share in order.shares]
    for part, (layout, start) in enumerate(zip(LAYOUTS, (0, 3, 5), strict=True)):
        size = sum(layout)
        everything = sorted((start + shard, sample) for shard, count in enumerate(layout) for sample in range(count))
        for epoch in range(len(per_set[part]) // size):
            assert sorted(per_set[part][epoch * size:(epoch + 1) * size]) == everything
        alone = locate(GlobalOrder(layout, 1, 4, 16), 0, len(per_set[part]))
        assert per_set[part] == [(start + shard, sample) for shard, sample in alone]


@given(image=st.integers(0, 10**12), count=st.integers(1, 60))
@settings(max_examples=40)
def test_a_function_of_the_number(image, count):
    order = mixed()
    together = locate(order, image, count)
    assert together[::17] == [locate(mixed(), image + i, 1)[0] for i in range(0, count, 17)]
    sets, numbers = order.numbers(np.arange(image, image + count))
    for part in range(3):
        assert (np.diff(numbers[sets == part]) == 1).all()


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50))
def test_apportion(weights):
    shares = apportion(weights, GROUP)
    assert sum(shares) == GROUP
    assert min(shares) >= 1
    exact = np.asarray(weights) / sum(weights) * GROUP
    assert all(abs(share - e) < 1 + len(weights) for share, e in zip(shares, exact, strict=True))


def test_the_groups_are_mixed():
    """Neither alternating nor in runs: among two equal sets, neighbours agree half of the time, in every group differently."""
    order = MixedOrder([GlobalOrder((100,), 0, 1, 10)] * 2, (1, 1), 0)
    groups = order.numbers(np.arange(3 * GROUP))[0].reshape(3, GROUP).tolist()
    for parts in groups:
        agree = np.mean(np.diff(parts) == 0)
        assert abs(agree - 0.5) < 4 * 0.5 / np.sqrt(GROUP)
    assert groups[0] != groups[1] != groups[2]


def working_sets_hold(order, batch: int, world: int, steps: int) -> None:
    count = batch // world
    for rank in range(world):
        for nimg in range(0, steps * batch, batch):
            read = {shard for shard, _ in locate(order, nimg + rank * count, count)}
            assert read <= set(order.working_set(nimg, batch, rank * count, count))
            later = {shard for shard, _ in locate(order, nimg + 2 * batch + rank * count, count)}
            assert later <= set(order.working_set(nimg, batch, rank * count, count, steps=3))


@given(layout=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(sum), lanes=st.integers(1, 40),
       block=st.integers(1, 30), world=st.sampled_from([1, 2, 4]), per_rank=st.integers(1, 9))
@settings(max_examples=60)
def test_a_rank_reads_from_its_working_set_only(layout, lanes, block, world, per_rank):
    working_sets_hold(GlobalOrder(layout, 3, lanes, block), world * per_rank, world, 30)


def test_working_sets_of_a_mixture():
    working_sets_hold(mixed(), 32, 4, 40)


def test_the_next_slots_are_known():
    """What is read after the present slot was announced with the working set ahead; and lanes keep ranks apart."""
    order = GlobalOrder((50,) * 64, 0, 16, 25)
    batch, world = 16, 4
    for rank in range(world):
        now, then = (set(order.working_set(0, batch, 4 * rank, 4, ahead)) for ahead in (0, 1))
        assert len(now) <= 4 * 2
        second = {shard for step in range(25, 50) for shard, _ in locate(order, step * batch + 4 * rank, 4)}
        assert now | second == then
    ranks = [set(order.working_set(0, batch, 4 * rank, 4)) for rank in range(world)]
    assert sum(map(len, ranks)) < 2 * len(set().union(*ranks))


@pytest.mark.parametrize("block", [25, 24, 199, 200, 300])  # the last of a lane of 200 is whole, 8, 1, the only one
def test_the_next_epoch_is_known_in_time(block):
    """From anywhere around the end of an epoch, all that is read within a block of every lane is announced, and counted."""
    order, batch, world = GlobalOrder((50,) * 64, 0, 16, block), 16, 4
    end, whole, parts = order.num_samples, 16 * min(block, 200), [(4 * rank, 4) for rank in range(world)]
    assert order.slot(end) == order.slot(end - 1) + 1
    most = order.most_held([1] * 64, 0, batch, parts, 1)
    for nimg in range(max(0, end - 2 * whole), end + whole, batch):
        soon = [order.working_set(nimg, batch, *part, 1) for part in parts]
        assert len(set().union(*soon)) <= most or nimg >= end
        for later in (0, whole // 2 // batch * batch, whole):
            for (first, count), shards in zip(parts, soon, strict=True):
                assert {shard for shard, _ in locate(order, nimg + later + first, count)} <= set(shards)


# In files

@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, count, resolution in (("dogs", 20, 8), ("cats", 30, 8), ("large", 4, 16)):
        for number in range(count):
            path = folder / "images" / name / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((resolution, resolution, 3), number + 100 * (name == "cats"), np.uint8)).save(path)
        pack(folder / "images" / name, folder / name, PackOptions(ImageOptions(resolution), samples_per_shard=8, workers=1))
    return folder


def colours(index, count: int, **options) -> list[int]:
    stream = stream_of(index, seed=0, lanes=4, block=4, batch=count, **options)
    try:
        return next(stream)["sample"][:, 0, 0, 0].tolist()
    finally:
        stream.close()


def test_a_mixture_of_folders(sets):
    index = load_index(f"{sets}/dogs@1 {sets}/cats@3")
    assert index.num_samples == 50
    drawn = colours(index, GROUP)
    assert sum(value >= 100 for value in drawn) == GROUP * 3 // 4
    assert set(drawn) == {*range(20), *range(100, 130)}
    assert colours(index, GROUP, workers=1) == drawn
    assert index.fingerprint != load_index(f"{sets}/dogs@1 {sets}/cats@2").fingerprint
    by_size = load_index(f"{sets}/{{dogs,cats}}")
    assert [part.weight for part in by_size.parts] == [20, 30]
    assert load_index(f"{sets}/*s").num_samples == 50
    assert isinstance(order_of(load_index(sets / "dogs"), StreamPlan(0, 4, 4, 8)), GlobalOrder)


def test_a_mixture_from_a_server(sets, tmp_path):
    """Braces and weights in a URL, and wildcards where the server lists its folders: the images of the local mixture."""
    with http_server(sets) as server:
        cache = NodeCache(tmp_path, 10**9)
        for pattern in ("{dogs,cats}", "{dogs,cats}@1", "{d,c}*s"):
            expected = load_index(f"{sets}/{pattern}")
            index = load_index(f"{server.url}/{pattern}")
            assert index == expected
            assert all(shard.location.startswith(f"{server.url}/") for shard in index.shards)
            assert colours(index, 200, cache=cache) == colours(expected, 200)


def test_mixtures_that_are_refused(sets, tmp_path):
    with pytest.raises(InputError, match="cannot be mixed: their resolution are 8 and 16"):
        load_index(f"{sets}/dogs {sets}/large")
    with pytest.raises(InputError, match="weights to some sets only"):
        load_index(f"{sets}/dogs@2 {sets}/cats")
    with pytest.raises(InputError, match="must be a positive number"):
        load_index(f"{sets}/dogs@0 {sets}/cats@1")
    with pytest.raises(InputError, match="nothing matches"):
        load_index(f"{sets}/x*")
    with pytest.raises(InputError, match="the braces of"):
        load_index(f"{sets}/{{dogs")
    spaced = shutil.copytree(sets / "dogs", tmp_path / "a folder @2")
    assert load_index(spaced).num_samples == 20
