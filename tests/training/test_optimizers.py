"""Optimizers by name, their knobs, and the correction for lazy regularisation, against the reference."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import nn

from stylegan_dist.config.schema import OptimizerConfig
from stylegan_dist.engine.data_parallel import FlatLearner
from stylegan_dist.engine.learner import Job
from stylegan_dist.errors import InputError
from stylegan_dist.objective.phases import Phase, main_share
from stylegan_dist.objective.result import LossResult
from stylegan_dist.ranks import Ranks
from stylegan_dist.training.build import build_optimizer

KNOBS = {  # optimizer -> what lazy regularisation with k = 16 makes of its knobs; m = 16 / 17
    "Adam": ({"betas": [0.5, 0.9]}, {"betas": (0.5 ** (16 / 17), 0.9 ** (16 / 17))}),
    "AdamW": ({"betas": [0.0, 0.9], "weight_decay": 0.1}, {"betas": (0.0, 0.9 ** (16 / 17)), "weight_decay": 0.1}),
    "SGD": ({"momentum": 0.8, "nesterov": True}, {"momentum": 0.8, "nesterov": True}),
    "RMSprop": ({"alpha": 0.95, "momentum": 0.3}, {"alpha": 0.95 ** (16 / 17), "momentum": 0.3}),
    "Adagrad": ({"eps": 1e-6}, {"eps": 1e-6, "lr_decay": 0}),
    "Adadelta": ({"rho": 0.8, "eps": 1e-5}, {"rho": 0.8 ** (16 / 17), "eps": 1e-5}),
}


def phase(network: str, interval: int, regulariser: bool) -> Phase:
    return Phase("", network, interval, (), False, regulariser)


def share_of(*intervals: int) -> float:
    """m of a network with such regularisers; beside it a network that learns in every fifth step, and has none."""
    return main_share([phase("d", 5, False), phase("g", 1, False), *(phase("g", k, True) for k in intervals if k > 1)], "g")


@pytest.mark.parametrize(("phases", "share"), [
    ([(1, False)], 1), ([(5, False)], 1), ([(1, False), (1, False)], 1),
    *(([(1, False), (k, True)], k / (k + 1)) for k in range(2, 40)),  # to the last bit
    ([(1, False), (16, True), (4, True)], 16 / 21), ([(1, False), (8, True), (8, True)], 8 / 10),
    ([(4, False), (16, True)], 4 / 5),
])
def test_who_is_corrected(phases, share):
    """For steps that regularisers add, and not for steps that are left out."""
    others = [phase("d", 1, False), phase("d", 2, True)]
    assert main_share([*others, *(phase("g", *one) for one in phases)], "g") == share


@pytest.mark.parametrize("name", KNOBS)
def test_lazy_correction_by_optimizer(name):
    options, expected = KNOBS[name]
    network = nn.Linear(3, 2)
    settings = OptimizerConfig(name=name, lr=0.02, **options)
    corrected = build_optimizer(network, settings, "optim.g", 16 / 17)
    assert type(corrected) is getattr(torch.optim, name)
    group, = corrected.param_groups
    assert group["lr"] == pytest.approx(0.02 * 16 / 17, rel=1e-12)
    for key, value in expected.items():
        assert group[key] == pytest.approx(value, rel=1e-12), key
    plain, = build_optimizer(network, settings, "optim.g").param_groups
    assert plain["lr"] == 0.02
    for key, value in options.items():
        assert plain[key] == (tuple(value) if key == "betas" else value), key


@pytest.mark.parametrize(
    ("name", "options"),
    [("SGD", {"betas": [0.5, 0.9]}), ("SGD", {"rho": 0.5}), ("SGD", {"eps": 1e-6}), ("Adam", {"momentum": 0.9}),
     ("Adam", {"alpha": 0.9}), ("RMSprop", {"betas": [0.0, 0.9]}), ("RMSprop", {"nesterov": True}),
     ("Adagrad", {"momentum": 0.1}), ("Adagrad", {"rho": 0.5}), ("Adadelta", {"alpha": 0.5})],
)
def test_a_knob_that_the_optimizer_does_not_have(name, options):
    with pytest.raises(InputError, match=rf"optim\.d\.{next(iter(options))}.*{name}"):
        build_optimizer(nn.Linear(2, 2), OptimizerConfig(name=name, lr=0.1, **options), "optim.d")


def test_unknown_optimizer():
    for name in ("Adamm", "Optimizer", "lr_scheduler"):
        with pytest.raises(InputError, match=r"optim\.g\.name"):
            build_optimizer(nn.Linear(2, 2), OptimizerConfig(name=name, lr=0.1), "optim.g")


@pytest.mark.parametrize("interval", [1, 4, 16])
@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.5, 0.9)])
def test_adam_takes_textbook_steps(interval, betas):
    network = nn.Linear(4, 3).double()
    optimizer = build_optimizer(network, OptimizerConfig(lr=0.01, betas=list(betas)), "optim.g", share_of(interval))
    start = network.weight.detach().clone()
    gradients = [reference.normals(i, 3, 4) * 10.0 ** (1 - i) for i in range(5)]
    for gradient in gradients:
        network.weight.grad = gradient.clone()
        optimizer.step()
    lr, lazy_betas = reference.lazy_adam(0.01, betas, interval)
    expected = reference.adam(start, gradients, lr, lazy_betas, eps=1e-8)
    assert reference.difference(network.weight - start, expected - start) < 1e-11


def test_lazy_adam_forgets_as_much_and_moves_as_far_in_k_steps():
    """k steps without the regulariser, and k + 1 with it, decay the moments alike and have the same total rate."""
    for k in (2, 4, 16):
        lr, betas = reference.lazy_adam(0.002, (0.5, 0.99), k)
        assert betas[0] ** (k + 1) == pytest.approx(0.5**k)
        assert betas[1] ** (k + 1) == pytest.approx(0.99**k)
        assert lr * (k + 1) == pytest.approx(0.002 * k)


@pytest.mark.parametrize(("clip", "expected"), [(0.0, 1.0), (10.0, 1.0), (0.5, 0.1)])
def test_long_gradients_are_scaled(clip, expected):
    """Their norm is that of the whole network; what is reported is as it was."""
    network = nn.Linear(2, 2)
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    wanted = torch.tensor([3.0, 0.0, 0.0, 0.0, 4.0, 0.0])  # of norm 5

    def loss(_: object) -> LossResult:
        values = torch.cat([p.flatten() for p in network.parameters()])
        return LossResult(values @ wanted, {})

    learner = FlatLearner(network, torch.optim.SGD(network.parameters(), lr=1.0), Ranks(device=torch.device("cpu")))
    result = learner.step([Job(loss, None)], {}, l1=0.25, second_order=False, clip=clip)
    after = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert result.gradient_norm.item() == pytest.approx(5)
    assert torch.allclose(before - after, wanted * expected + 0.25 * before.sign(), atol=1e-6)
