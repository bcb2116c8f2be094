"""Samples by number, on any number of ranks, and what is computed from them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import run_script

from stylegan_dist.evaluation.samples import BATCH, GeneratedSamples, gather_rows, labels_by_frequency
from stylegan_dist.kinds import declared
from stylegan_dist.networks.generator import Generator
from stylegan_dist.ranks import ALONE, Ranks


@pytest.mark.parametrize("count", [1, BATCH, 100])
def test_rows_do_not_depend_on_the_number_of_ranks(count: int):
    """Each of the ranks computes its batches of the same 32 numbers."""
    def compute(first: int, length: int) -> torch.Tensor:
        assert first % BATCH == 0
        assert 0 < length <= BATCH
        return torch.arange(first, first + length).float()[:, None].expand(length, 3)

    class OneOf(Ranks):
        def sum(self, value):
            return value  # of the others nothing comes

        def gather(self, value):
            return [value]

    told: list[int] = []
    whole = gather_rows(count, 3, compute, ALONE, told.append)
    assert torch.equal(whole[:, 0], torch.arange(count).float())
    assert sum(told) == count
    parts = [gather_rows(count, 3, compute, OneOf(rank, 3), told.append) for rank in range(3)]
    assert torch.equal(sum(parts), whole)


def test_what_fails_on_one_rank_fails_on_all(tmp_path: Path):
    """A rank that went on with its training alone would meet the others in another sum."""
    run_script(tmp_path, """
import os
import torch
import torch.distributed as dist
from forking import run_ranks
from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.evaluation.samples import gather_rows
from stylegan_dist.ranks import Ranks

def work():
    dist.init_process_group("gloo")
    ranks = Ranks(int(os.environ["RANK"]), 2)
    for error, said in ((LocalInputError("no shard"), "no shard"), (torch.OutOfMemoryError("CUDA"), "too little memory")):
        def compute(first, length):
            if first == 96:
                raise error
            return torch.ones(length, 3)

        try:
            gather_rows(200, 3, compute, ranks, lambda count: None)
        except InputError as found:
            assert said in str(found) and "rank 1" in str(found), found
        else:
            raise AssertionError
        assert float(ranks.sum(torch.tensor(1.0))) == 2
    dist.destroy_process_group()

run_ranks(2, work)
""")


def test_labels_have_the_frequencies_of_the_data():
    labels = labels_by_frequency(0, torch.arange(20_000), [1, 0, 3])
    assert labels.bincount(minlength=3)[1] == 0
    assert 0.24 < float((labels == 0).float().mean()) < 0.26
    assert torch.equal(labels[100:], labels_by_frequency(0, torch.arange(100, 20_000), [1, 0, 3]))


def test_path_lengths_of_a_linear_generator_are_known():
    """G(z) = A z and mean squared differences, z ~ N(0, I): 2 |A|^2 / values (Karras et al. 2019, section 4.1)."""
    matrix = torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))

    class Linear(Generator):
        z_dim, num_classes = 4, 0

        def map(self, z, labels, truncation=1.0):
            return z

        def synthesize(self, latents, labels, noise="const"):
            return (latents @ matrix).unflatten(1, (3, 8, 8))

    network = SimpleNamespace(dtype=torch.uint8, distance=lambda one, other: (one - other).double().square().mean((1, 2, 3)))
    samples = GeneratedSamples(Linear(), 0)
    lengths = samples.path_lengths(torch.arange(20_000), declared(None), network)
    assert float(lengths.mean()) == pytest.approx(2 * float(matrix.square().sum()) / matrix[0].numel(), rel=0.03)
    part = samples.path_lengths(torch.arange(40, 50), declared(None), network)
    assert torch.allclose(lengths[40:50], part, rtol=1e-3)
