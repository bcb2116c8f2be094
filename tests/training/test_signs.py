"""Signs of collapse: each is told once, where it is there, and not otherwise."""

from __future__ import annotations

import math

import pytest
import torch

from stylegan_dist.training.signs import R1_TICKS, SATURATED, TRAINED, Signs, spread, variety


def titles(signs: Signs, *ticks: dict[str, float]) -> list[str]:
    return [title for tick in ticks for title, _ in signs.of_tick(tick)]


SEPARATED = {"sign/real": 0.99, "sign/fake": -0.99}
OVERLAPPING = {"sign/real": 0.99, "sign/fake": -0.9}


@pytest.mark.parametrize("loss", ["nonsaturating", "minimax", "hinge"])
def test_a_saturated_discriminator_is_told_once(loss: str):
    few = [SEPARATED] * (SATURATED - 1)
    signs = Signs(loss)
    assert titles(signs, *few, OVERLAPPING, *few, {}, OVERLAPPING) == []
    assert titles(signs, *few, SEPARATED) == ["discriminator saturated"]
    assert titles(signs, *few, SEPARATED, *few) == []
    assert titles(Signs("wasserstein"), *few, *few) == []  # whose logits have no zero


def test_gradients_of_reals_that_explode_are_told_once():
    calm = [{"loss/r1": 0.5 * 1.2**i, "loss/d_main": 1.0} for i in range(R1_TICKS)]
    wild = {"loss/r1": 50.0, "loss/d_main": 1.0}
    assert titles(Signs("hinge"), *calm, wild, wild) == ["R1 explodes"]
    assert titles(Signs("hinge"), *calm[1:], wild) == []                          # no level yet
    assert titles(Signs("hinge"), *calm, {"loss/r1": 50.0, "loss/d_main": -60.0}) == []  # the game is larger
    assert titles(Signs("hinge"), *({"loss/r1": 1e-3 * 9**i} for i in range(4))) == []
    assert titles(Signs("hinge"), *[{"loss/r1": 1e-6}] * R1_TICKS, {"loss/r1": 0.5}) == []  # too little to do harm
    assert titles(Signs("hinge"), *calm, {"loss/r1": math.nan}, {"loss/r1": math.inf}, {}) == []  # what the guard counts


def test_samples_that_are_alike_or_out_of_range():
    generator = torch.Generator().manual_seed(0)
    reals = torch.randn(8, 1, 8, 8, generator=generator)
    samples = torch.randn(32, 1, 8, 8, generator=generator)
    contrast = torch.rand(32, 1, 1, 1, generator=generator)
    assert spread(samples) == pytest.approx(1, rel=0.2)
    assert variety(samples) == pytest.approx(1, abs=0.05)
    for made, told in (
        (samples, []), (0.01 * samples, []), (samples + samples[:1], []),
        (contrast * samples[:1] + 0.1 * samples, ["samples alike"]), (samples[:1].expand(32, 1, 8, 8), ["samples alike"]),
        (torch.full((32, 1, 8, 8), -1.0), ["samples alike"]),
        (100 * samples, ["samples out of range"]), (100 * contrast * samples[:1], ["samples alike", "samples out of range"]),
    ):
        signs = Signs("wasserstein")
        assert [title for title, _ in signs.of_samples(made, reals, TRAINED)] == told
        assert signs.of_samples(made, reals, TRAINED) == []
    assert Signs("hinge").of_samples(0 * samples, reals, TRAINED - 1) == []  # it has only begun
    assert Signs("hinge").of_samples(samples, reals[:1].expand(8, 1, 8, 8), TRAINED) == []  # the data itself is one image
    assert Signs("hinge").of_samples(samples * 0, reals[:1], TRAINED) == []  # one image has no variety
