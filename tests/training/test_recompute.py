"""Recomputed activations: another peak of memory, and not one bit of the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import torch
from launching import TINY
from safetensors.torch import load_file

from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.objective.game import full_precision
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState

RESOLUTION, BATCH = 32, 8
SMALL = (
    f"run.batch={BATCH}", "generator.z_dim=6", "generator.w_dim=5", "generator.channel_max=12", "discriminator.channel_max=12",
    "discriminator.mapping_layers=2", "discriminator.mbstd_group=2", "loss.r1_gamma=3", "loss.r2_gamma=0.5",
)
GRADIENTS = {"g_main": "g", "g_path": "g", "d_main": "d", "d_penalty": "d"}


def make_state(*overrides: str, classes: int = 0) -> TrainState:
    names = [str(i) for i in range(classes)] or None
    index = DatasetIndex(RESOLUTION, 3, "png", names, [3] * classes or None, [Shard("a.tar", 1, 0, "", "a.npy", "")])
    resolved = resolve(load_config(None, [*SMALL, *overrides]), index)
    state = TrainState(resolved, index, torch.device("cpu"))
    for seed, network in enumerate(state.networks.values()):
        reference.randomize(network, seed)  # with noise, and with biases
    return state


def gradients(state: TrainState, classes: int, micro_batch: int) -> dict[str, torch.Tensor]:
    """Of every phase and parameter, and the losses."""
    images = reference.normals(0, BATCH, 3, RESOLUTION, RESOLUTION).float()
    labels = torch.arange(BATCH) % classes if classes else None
    result = {}
    assert [phase.name for phase in state.phases] == list(GRADIENTS)
    for phase in state.phases:
        for name, network in state.networks.items():
            network.requires_grad_(name == phase.network)
            network.zero_grad(set_to_none=True)
        for start in range(0, BATCH, micro_batch):
            s = slice(start, start + micro_batch)
            part = MicroBatch(images[s], None if labels is None else labels[s], torch.arange(BATCH)[s])
            for loss in phase.losses:
                share = loss(part).share
                share.backward()
                result[f"{phase.name}.loss.{start}"] = share.detach()
        for name, parameter in state.networks[phase.network].named_parameters():
            if parameter.grad is not None:
                result[f"{phase.name}.{name}"] = parameter.grad.clone()
    return result


def counted(state: TrainState) -> dict[str, int]:
    """How often the forward of every block was called; filled later."""
    calls: dict[str, int] = {}
    for network in (state.generator.synthesis, state.discriminator):
        for resolution in network.resolutions:
            def count(*_: object, name: str = f"{type(network).__name__}.{resolution}") -> None:
                calls[name] = calls.get(name, 0) + 1

            getattr(network, f"b{resolution}").register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("settings", [
    (),
    pytest.param(("discriminator.architecture=orig", "precision.channels_last=false"), marks=pytest.mark.exhaustive),
    pytest.param(("precision.dtype=bf16", "precision.top_resolutions=2"), marks=pytest.mark.full),
    pytest.param(("loss.adversarial=relativistic",), marks=pytest.mark.exhaustive),
], ids=["plain", "orig", "bf16", "relativistic"])
@pytest.mark.parametrize(("classes", "micro_batch"), [pytest.param(0, 8, marks=pytest.mark.full), (3, 2)])
def test_gradients_of_all_phases_are_equal_to_the_last_bit(settings, classes, micro_batch):
    conditional = f"data.conditional={str(classes > 0).lower()}"
    stored = make_state(conditional, *settings, classes=classes)
    calls = counted(stored)
    expected = gradients(stored, classes, micro_batch)
    assert sum(name.startswith("g_path") for name in expected) > 20
    for lowest in (4, 16):
        state = make_state(conditional, f"run.recompute={lowest}", *settings, classes=classes)
        calls_now = counted(state)
        found = gradients(state, classes, micro_batch)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        for name, count in calls_now.items():
            recomputed = int(name.split(".")[1]) >= lowest
            assert count > calls[name] if recomputed else count == calls[name], name


def test_nothing_is_recomputed_without_gradients():
    state = make_state("run.recompute=4")
    calls = counted(state)
    with torch.no_grad():
        state.discriminator(state.generator(torch.zeros(2, 6)))
    state.networks["g"].requires_grad_(True)
    assert set(calls.values()) == {1}


def test_recomputation_keeps_the_arithmetic_of_the_forward_pass():
    state = make_state("run.recompute=4", "precision.dtype=bf16")
    d, seen = state.discriminator, []
    d.b32.conv0.register_forward_hook(lambda _m, _i, out: seen.append((torch.backends.cuda.matmul.allow_tf32, out.dtype)))
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with full_precision(d):
            logits = d(torch.zeros(2, 3, RESOLUTION, RESOLUTION))
        logits.sum().backward()
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert seen == [(False, torch.float32)] * 2


@pytest.mark.full
def test_a_run_may_switch_it_on_when_it_continues(labelled_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    def train(name: str, kimg: float, *overrides: str) -> dict[str, torch.Tensor]:
        command = ["train", *TINY, f"data.shards={labelled_shards}", f"run.dir={tmp_path / name}", f"run.kimg={kimg}"]
        assert main([*command, *overrides]) == 0
        folder = tmp_path / name / f"checkpoints/nimg-{round(kimg * 1000):08d}"
        return {f"{path.name}.{key}": value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}

    straight = train("straight", 0.032)
    train("switched", 0.016)
    capsys.readouterr()
    switched = train("switched", 0.032, "run.recompute=8")
    assert "changed since the last start" not in capsys.readouterr().out
    assert switched.keys() == straight.keys()
    for name, value in straight.items():
        assert torch.equal(switched[name], value), name
