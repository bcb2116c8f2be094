"""Loads a trained generator, for tools and evaluation. Imports neither accelerate nor the engines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from stylegan_dist.errors import InputError
from stylegan_dist.kinds import Kind, declared
from stylegan_dist.networks.generator import Generator, SampleShape
from stylegan_dist.networks.layers import Precision
from stylegan_dist.training.build import build_generator, precision_policy
from stylegan_dist.training.checkpoint import checkpoint_folder, newest_whole_checkpoint
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.saved import load_network, load_state


class Snapshot(NamedTuple):
    """A trained generator."""

    generator: Generator
    nimg: int      # images seen
    kind: Kind     # of what it makes


def load_generator(run_dir: str | os.PathLike, device: torch.device) -> Snapshot:
    """The averaged generator of a run's newest whole checkpoint, in full precision.

    Raises:
        InputError: not a run, no whole checkpoint, or one that does not fit the run's configuration.
    """
    run_dir = Path(run_dir)
    config = read_run_config(run_dir)
    nimg, damage = newest_whole_checkpoint(run_dir)
    if nimg == 0:
        raise InputError(f"{run_dir} has no whole checkpoint" + (f" ({damage[0]}): restore the files of one" if damage
                                                                 else ": train it first"))
    folder = checkpoint_folder(run_dir, nimg)
    data = load_state(folder).data
    generator = build_generator(
        config, SampleShape(data.resolution, data.channels, data.num_classes), torch.device("meta"),
        precision=Precision(clamp=precision_policy(config).clamp),
    )
    load_network(generator, folder, "g_ema")  # compares, before there is memory for what the files promise
    generator = generator.to_empty(device=device)
    load_network(generator, folder, "g_ema")
    return Snapshot(generator.eval().requires_grad_(False), nimg, declared(data.array))
