"""The real samples nearest to generated ones: the right ones, shown as they are, and copies are told from samples."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference import normals
from small_features import small_features

from stylegan_dist.data.batches import BatchDataset
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.evaluation.neighbours import NAME, NEIGHBOURS, Neighbours, _Fetched, _reals_among_themselves, shown_samples
from stylegan_dist.evaluation.reals import BLOCK, LANES
from stylegan_dist.evaluation.samples import pictures_for
from stylegan_dist.metrics import nearest_samples
from stylegan_dist.monitor.images import ABOUT, GAP
from stylegan_dist.networks.generator import Generator, SampleShape
from stylegan_dist.training.snapshot import Snapshot


class Copier(Generator):
    """Sample i is the i-th of some images."""

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.num_classes = 0
        self.images = torch.nn.Parameter(images, requires_grad=False)

    def draw(self, seed, purpose, index):
        return index

    def map(self, z, labels, truncation=1.0):
        return z

    def synthesize(self, latents, labels, noise="const"):
        return self.images[latents]


@pytest.fixture(scope="module")
def reals(small_shards: Path) -> torch.Tensor:
    """Values of the 60 real samples, in the order of an evaluation."""
    index = load_index(small_shards)
    stream = BatchStream(index, StreamPlan(0, LANES, BLOCK, 60), ReaderOptions(workers=0))
    values = index.kind.to_network(next(stream)["sample"])
    stream.close()
    return values


def features_of(index, values: torch.Tensor) -> torch.Tensor:
    network = small_features()
    return network(pictures_for(network, index.kind, values))


def shown(run: Path, shards: Path, real: torch.Tensor, made: torch.Tensor) -> list[str]:
    """What is said when a generator that makes these values is evaluated."""
    index, said = load_index(shards), []
    (run / "evaluation").mkdir()
    neighbours = Neighbours(run, index, None, 0, None, said.append)
    snapshot = Snapshot(Copier(made), 7000, index.kind, "", SampleShape(*made.shape[2:0:-1]))
    neighbours.show(snapshot, features_of(index, real), features_of(index, made))
    return said


def test_a_training_image_is_its_own_neighbour_at_distance_0(small_shards, reals, tmp_path):
    index = load_index(small_shards)
    features = features_of(index, reals)
    distances, names = nearest_samples(features[:40], features, 3)
    assert torch.equal(names[:, 0], torch.arange(40))
    assert not distances[:, 0].any()
    assert (distances[:, 1] > 0).all()

    (said,) = shown(tmp_path, small_shards, reals, reals[:40])
    assert "at 7 kimg the generator repeats its data: 40 of 40 samples (100.0%)" in said
    with Image.open(tmp_path / NAME) as picture:
        assert picture.info[ABOUT].startswith("At 7 kimg. 40 of 40 samples (100.0%) are much nearer")
        pixels = np.array(picture)
    side = 64 + GAP
    assert pixels.shape[1] == (1 + NEIGHBOURS) * side - GAP
    band = pixels.shape[0] // 10 - side + 1
    for row in range(10):
        tiles = [pixels[(row + 1) * band + row * side:][:64, column * side:][:, :64] for column in range(3)]
        assert np.array_equal(tiles[0], tiles[1])
        assert not np.array_equal(tiles[0], tiles[2])
        expected = index.kind.from_network(reals[row]).permute(1, 2, 0).numpy().repeat(8, 0).repeat(8, 1)
        assert np.array_equal(tiles[0], expected)


def test_other_images_are_no_copies(small_shards, reals, tmp_path):
    assert shown(tmp_path, small_shards, reals[:40], reals[40:]) == []
    with Image.open(tmp_path / NAME) as picture:
        assert int(re.search(r"(\d+) of 20 samples", picture.info[ABOUT])[1]) <= 4


def test_what_goes_wrong_is_a_warning(small_shards, reals, tmp_path):
    (said,) = shown(tmp_path, small_shards, reals[:2], reals)
    assert said.startswith("WARNING: ")
    assert not (tmp_path / NAME).exists()


def test_neighbours_by_their_definition():
    samples, others = normals(0, 50, 8).float(), normals(1, 70, 8).float()
    distances, names = nearest_samples(samples, others, 4)
    plain = (samples.double()[:, None] - others.double()[None]).square().sum(2).sort(1)
    assert torch.equal(names, plain.indices[:, :4])
    assert torch.allclose(distances, plain.values[:, :4], rtol=1e-12)


def test_equal_shares_of_real_and_held_out_samples():
    """What is said of real samples is what a perfect generator would get."""
    everything = normals(2, 4000, 4).float()
    radii, share = _reals_among_themselves(everything[:2000])
    distances, names = nearest_samples(everything[2000:], everything[:2000], 1)
    held_out = float((distances[:, 0] <= 0.75**2 * radii[names[:, 0]]).double().mean())
    assert 0.05 < share < 0.5
    assert held_out == pytest.approx(share, abs=0.03)


def test_which_samples_are_shown():
    assert shown_samples(torch.tensor([9.0, 1, 8, 7, 6, 5, 4, 3, 2, 10, 11, 12])) == [1, 8, 7, 6, 5, 0, 2, 3, 4, 9]
    assert shown_samples(torch.tensor([2.0, 1.0])) == [1, 0]


def test_a_single_sample_is_that_of_its_batch(small_shards):
    index = load_index(small_shards)
    dataset = BatchDataset(ShardReader(index), StreamPlan(0, LANES, BLOCK, 1))
    stream = BatchStream(index, StreamPlan(0, LANES, BLOCK, 60), ReaderOptions(workers=0))
    batch = next(stream)["sample"].clone()
    stream.close()
    for image in (0, 59, 31):
        assert torch.equal(dataset.single(image), batch[image])
    dataset.reader.close()


def test_remote_shards_are_counted_once(small_shards):
    index = load_index(small_shards)
    assert _Fetched(index).add([0, 1]) == 0
    remote = replace(index, shards=[replace(shard, location=f"s3://there/{i}") for i, shard in enumerate(index.shards)])
    fetched = _Fetched(remote)
    assert fetched.add([0, 1, 0]) == index.shards[0].bytes + index.shards[1].bytes
    assert fetched.add([1]) == index.shards[0].bytes + index.shards[1].bytes
