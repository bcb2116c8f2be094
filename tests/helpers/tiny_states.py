"""The state of a run with tiny networks, without a run: made, changed by a step, saved."""

from __future__ import annotations

from pathlib import Path

import torch
from saving import save_checkpoint

from stylegan_dist.config import load_config
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.saved import NAMES
from stylegan_dist.training.state import TrainState

INDEX = DatasetIndex(8, 3, "png", ["a", "b"], [3, 5], [Shard("a.tar", 8, 1, "x", "a.npy", "y")])
TINY = ["data.shards=somewhere", "run.batch=4", "generator.z_dim=8", "generator.w_dim=8", "generator.channel_base=64",
        "generator.channel_max=8", "discriminator.channel_max=8", "discriminator.mapping_layers=1"]


def config_with(*overrides: str):
    return resolve(load_config(None, [*TINY, *overrides]), INDEX)


def new_state(*overrides: str) -> TrainState:
    return TrainState(config_with(*overrides), INDEX, torch.device("cpu"))


def step(state: TrainState, seed: int) -> None:
    """One optimizer step of both networks on random gradients, and what the loop does after it."""
    generator = torch.Generator().manual_seed(seed)
    for name, network in state.networks.items():
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizers[name].step()
    state.generator.w_avg.normal_(generator=generator)
    state.objective.running["path_mean"].uniform_(generator=generator)
    state.ema.update(state.generator, state.nimg, 4)
    state.nimg += 4


def contents(state: TrainState) -> dict[str, bytes]:
    """Every bit of the state by name."""
    flat = {f"{file}/{key}": value.numpy().tobytes() for file, tensors in state.tensors().items()
            for key, value in tensors.items()}
    return flat | {"path_mean": state.objective.running["path_mean"].numpy().tobytes(), "nimg": str(state.nimg).encode()}


def save_small(run_dir: Path, nimg: int, tensors: dict | None = None, file_bytes: int = 1 << 30, **facts) -> Path:
    """A checkpoint that is whole, though of no network."""
    data = {"fingerprint": "x", "resolution": 8, "channels": 3, "num_classes": 0}
    state = {"nimg": nimg, "segment": 0, "path_mean": 0.5, "statistics": {}, "data": data, "config": {}}
    files = {name: (tensors or {}).get(name, {}) for name in NAMES}
    return save_checkpoint(run_dir, nimg, files, state | facts, file_bytes=file_bytes)


def save(state: TrainState, run_dir: Path) -> Path:
    return save_checkpoint(run_dir, state.nimg, state.tensors(), state.facts())
