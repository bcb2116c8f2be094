"""torch.compile, with the real compiler: the same losses, gradients and runs, the same bits again, and a way back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from launching import TINY, finished, train_command, trained
from native_cases import native_calls
from safetensors.torch import load_file
from saving import FILES
from torch import Tensor

from stylegan_dist.config import load_config
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.ranks import ALONE
from stylegan_dist.training.compiled import compile_networks, why_not_compiled
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.step import micro_batches

# Larger steps and a small eps of Adam make a rounding difference grow tenfold a step, see test_resume.py.
CALM = ("optim.g.eps=1e-2", "optim.d.eps=1e-2", "optim.g.lr=0.001", "optim.d.lr=0.001")
STEPS_10 = "run.kimg=0.08"
LAST = "checkpoints/nimg-00000080"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty folder for what the compiler makes, which all of this file share."""
    folder = str(tmp_path_factory.mktemp("inductor"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
        yield folder
    torch._dynamo.reset()


def make_state(shards: Path, *overrides: str) -> tuple[TrainState, MicroBatch]:
    """Networks whose noise and biases do something, and a batch."""
    torch._dynamo.reset()  # what is compiled counts for all networks of a class
    torch._dynamo.utils.counters.clear()
    index = load_index(shards)
    config = load_config(None, [*TINY, f"data.shards={shards}", *overrides])
    resolved = resolve(config, index)
    state = TrainState(resolved, index, torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in state.generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)
    d, run = resolved.config.data, resolved.config.run
    stream = BatchStream(index, StreamPlan(run.seed, d.lanes, d.block, run.batch))
    (part,) = micro_batches(next(stream), run.batch, resolved.conditional, torch.device("cpu"), index.kind)
    return state, part


def measure(state: TrainState, part: MicroBatch) -> dict[str, Tensor]:
    """Statistics and gradients of every phase."""
    found = {}
    for phase in state.phases:
        for name, network in state.networks.items():
            network.requires_grad_(name == phase.network)
            network.zero_grad(set_to_none=True)
        for loss in phase.losses:
            share, statistics, means = loss(part)
            share.backward()
            found |= {f"{phase.name}.{name}": value.detach() for name, value in (*statistics.items(), *means.items())}
        found |= {f"{phase.name}.{name}": p.grad for name, p in state.networks[phase.network].named_parameters()
                  if p.grad is not None}
    return found


@pytest.mark.exhaustive
@pytest.mark.slow
def test_losses_and_gradients(small_shards: Path, cache: str):
    state, part = make_state(small_shards, "loss.adversarial=relativistic")  # D on real images in g_main, too
    keys = {name: list(network.state_dict()) for name, network in state.networks.items()}
    eager, calls = native_calls(lambda: measure(state, part))
    assert re.fullmatch(r"compiled in \d+ s", compile_networks(state, ALONE, ("g", "d"), part))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 4  # generator and discriminator, with gradients for their parameters and without
    compiled, compiled_calls = native_calls(lambda: measure(state, part))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # the trial has compiled everything
    assert compiled_calls == calls  # the native operators stay what they are
    assert compiled.keys() == eager.keys()
    assert any(not torch.equal(compiled[name], value) for name, value in eager.items())  # it has been used
    for name, value in eager.items():
        phase = name.partition(".")[0]
        largest = max(x.abs().max().item() for key, x in eager.items() if key.startswith(phase))
        # Where most terms of a sum cancel, its own size says little: statistics and noise strengths are single sums,
        # and so are gradients of biases in the penalty, whose network is not compiled but the generator of R2.
        floor = largest if phase == "d_penalty" else largest / 10 if value.numel() == 1 else 0.0
        scale = max(value.abs().max().item(), floor)
        tolerance = 0 if phase == "g_path" else 1e-5 * scale
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=tolerance, msg=name)
    assert keys == {name: list(network.state_dict()) for name, network in state.networks.items()}


@pytest.mark.full
@pytest.mark.slow
def test_runs(small_shards: Path, tmp_path: Path, cache: str):
    """10 steps equal those without, up to rounding; again, they equal themselves to the last bit."""
    options = (STEPS_10, *CALM)  # the shapes of the test above, where that runs
    trained(small_shards, tmp_path / "eager", *options)
    for name in ("compiled", "again"):
        result = finished(train_command(small_shards, tmp_path / name, *options, "run.compile=true"), timeout=1500)
        assert result.returncode == 0, result.stdout + result.stderr
        assert re.search(r"compile +on", result.stdout)
        assert re.search(r"compiled in \d+ s", result.stdout)
    for file in FILES:
        eager, compiled, again = (load_file(tmp_path / name / LAST / f"{file}.safetensors")
                                  for name in ("eager", "compiled", "again"))
        assert eager.keys() == compiled.keys()
        for key, value in eager.items():
            assert torch.equal(compiled[key], again[key]), key
            torch.testing.assert_close(compiled[key], value, rtol=1e-4, atol=1e-4, msg=f"{file} {key}")


@pytest.mark.full
@pytest.mark.slow
def test_without_a_compiler_training_goes_on(small_shards: Path, tmp_path: Path):
    command = train_command(small_shards, tmp_path / "run", STEPS_10, "run.compile=true")
    result = finished(command, CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    out = result.stdout
    assert result.returncode == 0, out + result.stderr
    assert re.search(r"compile is off, it has failed \(.*\); training goes on without it", out)
    assert (tmp_path / "run" / LAST).is_dir()


@pytest.mark.parametrize(("overrides", "spread", "reason"), [
    ((), False, "auto"),
    (("run.compile=off",), False, "run.compile"),
    (("run.compile=on",), True, "ZeRO-3"),
    (("run.compile=on", "run.recompute=8"), False, "run.recompute"),
    (("run.compile=on",), False, ""),
])
def test_why_not(overrides: tuple[str, ...], spread: bool, reason: str):
    why = why_not_compiled(load_config(None, list(overrides)), spread)
    assert reason in why
    assert bool(why) == bool(reason)
