"""What all scores share: refused features, addressed subsets, halves, pieces, and the floor of real samples."""

from __future__ import annotations

import pytest
import torch
from reference import normals

from stylegan_dist.errors import InputError
from stylegan_dist.metrics import features, frechet_distance, gather_features, halves, kernel_distance, real_floor, subset
from stylegan_dist.metrics.features import check_features, check_pair, pieces
from stylegan_dist.ranks import ALONE


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(3, 4, 2), torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 0)])
def test_what_are_no_features(wrong: torch.Tensor):
    with pytest.raises(ValueError, match="real"):
        check_features(wrong, "real")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "ROWS", 4)
    wrong = torch.ones(10, 3)
    wrong[9, 1] = value
    with pytest.raises(InputError, match="generated: features of samples 8 to 9"):
        check_features(wrong, "generated")


def test_too_few_samples():
    with pytest.raises(InputError, match="at least 5"):
        check_features(torch.ones(4, 3), "real", 5)


def test_features_of_different_networks():
    with pytest.raises(ValueError, match="compared"):
        check_pair(torch.ones(4, 3), torch.ones(4, 2))


@pytest.mark.parametrize(("count", "width"), [(0, 3), (1, 3), (2048, 1), (5000, 7), (5000, 4000), (3, 1 << 23)])
def test_pieces_are_all_rows_once(count: int, width: int):
    found = list(pieces(count, width))
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])][:len(found)]
    assert (found[-1][1] if found else 0) == count
    assert all(end - start > 0 and (end - start == 1 or (end - start) * width <= 1 << 22) for start, end in found)


def test_halves_are_disjoint_and_addressed():
    first, second = halves(101, 7)
    assert len(first) == len(second) == 50
    assert len({*first.tolist(), *second.tolist()}) == 100
    assert torch.equal(first, first.sort().values)
    again, _ = halves(101, 7)
    other, _ = halves(101, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.arange(50)), "labels may rise with the numbers"


def test_subsets_are_nested_in_one_draw_and_independent_in_two():
    large, small, other = subset(1000, 500, 3, 0), subset(1000, 100, 3, 0), subset(1000, 500, 3, 1)
    assert torch.equal(large[:100], small)
    assert len(set(large.tolist())) == 500
    shared = len({*large.tolist()} & {*other.tolist()})
    assert 200 < shared < 300  # 250 on average, 8 standard deviation


def test_no_global_generator_is_touched():
    state = torch.random.get_rng_state()
    real_floor(frechet_distance, normals(0, 50, 4))
    subset(100, 10, 0, 0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_floor_is_the_score_of_the_halves():
    real = normals(0, 60, 4)
    first, second = halves(60, 5)
    assert real_floor(kernel_distance, real, 5) == kernel_distance(real[first], real[second])
    assert real_floor(lambda a, b: (len(a), len(b)), real) == (30, 30)


def test_gathering_alone():
    part = torch.rand(3, 2)
    whole = gather_features(part, 1, 4, ALONE)
    assert torch.equal(whole, torch.cat([torch.zeros(1, 2), part]))
