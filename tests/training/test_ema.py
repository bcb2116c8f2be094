"""The averaged generator against the reference."""

from __future__ import annotations

import pytest
import reference
import torch
from small_networks import stylegan2_generator
from torch import nn

from stylegan_dist.training.ema import AveragedGenerator


@pytest.mark.parametrize("rampup", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("nimg", [0, 32, 1000, 10**6])
def test_weight_of_the_average(rampup, nimg):
    average = AveragedGenerator(nn.Linear(1, 1), half_life_kimg=10, rampup=rampup)
    expected = reference.ema_weight(nimg, 32, 10_000, rampup)
    assert average.decay(nimg, 32) == pytest.approx(expected, rel=1e-12)
    if nimg == 10**6 or not rampup:
        steps = 10_000 / 32
        assert average.decay(nimg, 32) ** steps == pytest.approx(0.5), "an old value counts half after a half-life"
    assert AveragedGenerator(nn.Linear(1, 1), half_life_kimg=0, rampup=rampup).decay(nimg, 32) == 0


def test_average_of_a_changing_generator():
    g = stylegan2_generator(8, 1, z_dim=5, w_dim=4, mapping_layers=2, channel_base=48, channel_max=4)
    reference.randomize(g, 0).double()
    average = AveragedGenerator(g, half_life_kimg=0.1, rampup=0.25)
    expected = {name: value.clone() for name, value in g.state_dict().items()}
    for step in range(6):
        reference.randomize(g, step + 1)
        average.update(g, nimg=32 * step, batch=32)
        weight = reference.ema_weight(32 * step, 32, 100, 0.25)
        for name, value in g.named_parameters():
            expected[name] = weight * expected[name] + (1 - weight) * value.detach()
        expected.update({name: value.clone() for name, value in g.named_buffers()})
        for name, value in average.network.state_dict().items():
            assert reference.difference(value, expected[name]) < 1e-12, name
        if step == 0:
            assert all(torch.equal(a, b) for a, b in zip(average.network.parameters(), g.parameters(), strict=True))
    assert not any(p.requires_grad for p in average.network.parameters())
    assert all(p.requires_grad for p in g.parameters()), "the average is a copy"
