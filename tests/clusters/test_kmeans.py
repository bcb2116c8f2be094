"""k-means: it finds what is there, an independent reference agrees, and no cluster is empty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stylegan_dist.clusters import kmeans as module
from stylegan_dist.clusters.kmeans import kmeans, nearest
from stylegan_dist.errors import InputError


def blobs(sizes: list[int], width: int = 8, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Rows float32 around far centres, mixed, and the number of the blob of each."""
    generator = torch.Generator().manual_seed(1)
    centres = 5 * torch.randn(len(sizes), width, generator=generator)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[torch.randperm(sum(sizes), generator=generator)]
    return centres[labels] + spread * torch.randn(len(labels), width, generator=generator), labels


def test_far_blobs_of_very_unequal_sizes_are_found():
    rows, blob = blobs([300, 80, 20, 5, 1])
    found = kmeans(rows, 5, seed=0)
    labels, distances = nearest(rows, found.centres)
    assert len(set(zip(labels.tolist(), blob.tolist(), strict=True))) == 5, "each blob is one cluster"
    for label in range(5):
        mean = rows[labels == label].double().mean(0)
        assert torch.allclose(found.centres[label], mean, rtol=1e-12, atol=1e-12)
    expected = (rows.double() - found.centres[labels]).square().sum(1)
    assert torch.allclose(distances, expected, rtol=1e-9, atol=1e-9)
    assert found.inertia == pytest.approx(float(expected.mean()), rel=1e-9)


def test_no_row_is_nearer_to_another_centre_and_centres_are_means():
    """What Lloyd's rounds end with, where nothing is well separated."""
    rows = torch.randn(400, 5, generator=torch.Generator().manual_seed(2))
    found = kmeans(rows, 12, seed=3)
    table = (rows.double()[:, None] - found.centres).square().sum(2)
    labels = nearest(rows, found.centres)[0]
    assert torch.equal(labels, table.argmin(1))
    assert found.rounds < module.MOST_ROUNDS
    means = torch.stack([rows[labels == label].double().mean(0) for label in range(12)])
    assert torch.allclose(means, found.centres, rtol=1e-12, atol=1e-12)


def test_the_seed_decides_and_nothing_else():
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(2))
    first, again, other = (kmeans(rows, 20, seed, starts=1).centres for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert kmeans(rows, 20, 0, starts=3).inertia <= kmeans(rows, 20, 0, starts=1).inertia


def test_distances_do_not_depend_on_how_many_rows_are_asked_for(monkeypatch):
    rows, _ = blobs([50, 50, 50])
    centres = kmeans(rows, 3, 0).centres
    whole = nearest(rows, centres)
    monkeypatch.setattr(module, "_NUMBERS", 8 * 32)  # tiles of 32 rows
    parts = [nearest(part, centres) for part in rows.split(32)]
    assert torch.equal(whole[0], torch.cat([labels for labels, _ in parts]))
    assert torch.allclose(whole[1], torch.cat([distances for _, distances in parts]), rtol=1e-9, atol=1e-9)


def test_an_empty_cluster_gets_the_farthest_row():
    labels = torch.tensor([0, 0, 0, 2, 2, 4])
    distances = torch.tensor([1.0, 2.0, 3.0, 0.5, 2.5, 9.0], dtype=torch.float64)
    filled = module._without_empty(labels, distances, 5)
    assert filled.tolist() == [0, 0, 1, 2, 3, 4], "the row of cluster 4 is alone there"


def test_more_clusters_than_different_rows():
    rows = torch.rand(4, 300, generator=torch.Generator().manual_seed(0))[torch.arange(40) % 4]
    assert sorted(nearest(rows, kmeans(rows, 4, 0).centres)[0].bincount().tolist()) == [10] * 4
    with pytest.raises(InputError, match="only 4 of the samples differ in their features: ask for 4 clusters at most"):
        kmeans(rows, 5, 0)
    assert kmeans(rows, 1, 0).centres.allclose(rows.double().mean(0))
