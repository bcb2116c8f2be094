"""Loads a trained generator, for tools and evaluation. Imports neither accelerate nor the engines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import nn

from stylegan_dist.errors import InputError
from stylegan_dist.files import file_digest
from stylegan_dist.kinds import Kind, declared
from stylegan_dist.networks.generator import Generator, SampleShape
from stylegan_dist.networks.layers import Precision
from stylegan_dist.training.best import read_best
from stylegan_dist.training.build import build_discriminator, build_generator, precision_policy
from stylegan_dist.training.checkpoint import check_checkpoint, checkpoint_folder, list_checkpoints, newest_whole_checkpoint
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.saved import MANIFEST, load_network, load_state

_Network = TypeVar("_Network", bound=nn.Module)
Which = int | Literal["newest", "best"]  # a checkpoint of a run; a number: of images seen


class Snapshot(NamedTuple):
    """A trained generator."""

    generator: Generator
    nimg: int      # images seen
    kind: Kind     # of what it makes
    digest: str    # SHA-256 of the checkpoint's manifest, which has those of all its files
    shape: SampleShape


def load_generator(run_dir: str | os.PathLike, device: torch.device, which: Which = "newest") -> Snapshot:
    """The averaged generator of a whole checkpoint, in full precision.

    Raises:
        InputError: not a run, no such checkpoint, or one that is damaged or does not fit the run's configuration.
    """
    run_dir = Path(run_dir)
    config = read_run_config(run_dir)
    nimg = find_checkpoint(run_dir, which)
    folder = checkpoint_folder(run_dir, nimg)
    data, digest = load_state(folder).data, file_digest(folder / MANIFEST)
    shape = SampleShape(data.resolution, data.channels, data.num_classes)
    generator = build_generator(config, shape, torch.device("meta"), precision=Precision(clamp=precision_policy(config).clamp))
    return Snapshot(_loaded(generator, folder, "g_ema", device), nimg, declared(data.array).at(run_dir), digest, shape)


def load_discriminator(run_dir: str | os.PathLike, device: torch.device, nimg: int) -> nn.Module:
    """The discriminator of a whole checkpoint, in full precision.

    Raises:
        InputError: as of `load_generator`.
    """
    config, folder = read_run_config(Path(run_dir)), checkpoint_folder(Path(run_dir), nimg)
    data = load_state(folder).data
    shape = SampleShape(data.resolution, data.channels, data.num_classes)
    precision = Precision(clamp=precision_policy(config).clamp)
    network = build_discriminator(config, shape, torch.device("meta"), precision)
    return _loaded(network, folder, "d", device)


def _loaded(network: _Network, folder: Path, name: str, device: torch.device) -> _Network:
    load_network(network, folder, name)  # compares, before there is memory for what the files promise
    network = network.to_empty(device=device)
    load_network(network, folder, name)
    return network.eval().requires_grad_(False)


def find_checkpoint(run_dir: Path, which: Which = "newest") -> int:
    """Images seen at a whole checkpoint.

    Raises:
        InputError: there is no such one, or it is damaged.
    """
    if which == "newest":
        nimg, damage = newest_whole_checkpoint(run_dir)
        if nimg == 0:
            raise InputError(f"{run_dir} has no whole checkpoint" + (f" ({damage[0]}): restore the files of one" if damage
                                                                     else ": train it first"))
        return nimg
    there = ", ".join(str(nimg) for nimg, _ in list_checkpoints(run_dir)) or "none"
    if which == "best":
        best = read_best(run_dir)
        if best is None:
            raise InputError(f"{run_dir} has no best checkpoint yet: score some with stylegan-dist evaluate; or give --nimg, "
                             f"there are: {there}")
        which = best.nimg
    folder = checkpoint_folder(run_dir, which)
    if not folder.is_dir():
        raise InputError(f"{run_dir} has no checkpoint at {which} images; there are: {there}")
    if problem := check_checkpoint(folder):
        raise InputError(problem)
    return which
