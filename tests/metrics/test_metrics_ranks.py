"""Scores of two ranks: real process groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import run_script
from reference import normals
from safetensors.torch import load_file

from stylegan_dist.metrics import Moments, frechet_distance, kernel_distance, manifold_scores

pytestmark = pytest.mark.slow

COUNT, WIDTH = 301, 24


def test_two_ranks(tmp_path: Path):
    """Moments up to rounding, and the same on both ranks; gathered features, and what is computed of them, to the last bit."""
    run_script(tmp_path, f"""
import os
import torch
import torch.distributed as dist
from forking import run_ranks
from reference import normals
from safetensors.torch import save_file
from stylegan_dist.errors import InputError
from stylegan_dist.metrics import MomentSums, gather_features
from stylegan_dist.ranks import Ranks, part_of

def work():
    dist.init_process_group("gloo")
    ranks = Ranks(int(os.environ["RANK"]), 2)
    real = normals(0, {COUNT}, {WIDTH}).float() + 3
    start, length = part_of(len(real), ranks)
    sums, alone = MomentSums({WIDTH}), MomentSums({WIDTH})
    for batch in real[start:start + length].split(17):
        sums.add(batch)
    if ranks.is_main:  # the other has nothing
        alone.add(real)
    moments, one = sums.moments(ranks), alone.moments(ranks)
    again = sums.moments(ranks)
    whole = gather_features(real[start:start + length], start, len(real), ranks)
    try:
        MomentSums({WIDTH}).moments(ranks)
        refused = 0
    except InputError:
        refused = 1
    sums.add(torch.full((ranks.rank, {WIDTH}), torch.nan))  # on one rank alone
    try:
        sums.moments(ranks)
    except InputError:
        refused += 1
    save_file({{"whole": whole, "mean": moments.mean, "covariance": moments.covariance, "again": again.covariance,
               "one": one.covariance, "counts": torch.tensor([moments.count, one.count, refused])}},
              {str(tmp_path)!r} + f"/{{ranks.rank}}.safetensors")
    dist.destroy_process_group()

torch.set_num_threads(1)
run_ranks(2, work)
""")
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["counts"].tolist() == [COUNT, COUNT, 2]
    real = normals(0, COUNT, WIDTH).float() + 3
    assert torch.equal(first["whole"], real)
    expected = Moments.of(real)
    for name in ("covariance", "again", "one"):
        assert torch.allclose(first[name], expected.covariance, rtol=1e-12, atol=1e-14)
    assert torch.allclose(first["mean"], expected.mean, rtol=1e-14)
    generated = normals(1, 280, WIDTH).float() + 3
    found = Moments(COUNT, first["mean"], first["covariance"])
    assert frechet_distance(found, generated) == pytest.approx(frechet_distance(real, generated), rel=1e-11)
    assert kernel_distance(first["whole"], generated) == kernel_distance(real, generated)
    assert manifold_scores(first["whole"], generated) == manifold_scores(real, generated)
