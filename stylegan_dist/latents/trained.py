"""A trained generator as tools use it: its run and checkpoint, what it makes, where it computes, and its latent space."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stylegan_dist.data import storage
from stylegan_dist.data.index import read_index
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import Kind
from stylegan_dist.machine import usable_device
from stylegan_dist.networks.generator import Generator, SampleShape
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.snapshot import Which, load_generator

DRAWS = 10_000       # latents whose mean and spread describe the space, as published
_AT_ONCE = 1000      # of these
_FLATTEST = 1e-4     # least variance in a direction, as a part of the greatest


class Population(NamedTuple):
    """What latents of one class, or of all, are like."""

    mean: Tensor       # [...], as one latent
    spread: Tensor     # [], root of the mean squared distance from the mean
    whitening: Tensor  # [D, D], with D values of a latent: (latent - mean) @ whitening has variance 1 in all directions


@dataclass(frozen=True)
class Trained:
    """The averaged generator of one checkpoint of a run, in full precision.

    Attributes:
        shape: of what it makes.
        kind: of what it makes.
        nimg: images that it was trained on.
        digest: SHA-256 of the checkpoint's manifest, which names the content of all its files.
        device: where it computes.
    """

    run_dir: Path
    generator: Generator
    shape: SampleShape
    kind: Kind
    nimg: int
    digest: str
    device: torch.device

    def check_class(self, label: int | None, option: str = "--class") -> None:
        """Raise InputError where there is no such class. None, for no class in particular, is always right.

        Args:
            option: what named the class.
        """
        classes = self.shape.num_classes
        if label is not None and not classes:
            raise InputError(f"{option} has no meaning here: {self.run_dir} was trained without labels")
        if label is not None and not 0 <= label < classes:
            raise InputError(f"{option} {label} does not exist: {self.run_dir} has classes 0 to {classes - 1}")

    def class_names(self) -> tuple[str, ...]:
        """Those of the data, if they lie on this machine; nothing is fetched for them. Empty where they are not known."""
        if self.shape.num_classes:
            with contextlib.suppress(InputError):
                data = read_run_config(self.run_dir).data.shards
                if os.path.isdir(storage.local_path(data)):
                    names = read_index(data).classes or []
                    if len(names) == self.shape.num_classes:
                        return tuple(names)
        return ()

    @torch.no_grad()
    def latents(self, purpose: str, index: Tensor, label: int | None) -> Tensor:
        """Those of some numbers [N] of a purpose, with seed 0: [N, ...], of a class, or of all classes in turn."""
        classes, labels = self.shape.num_classes, None
        index = index.to(self.device)
        if classes:
            labels = index % classes if label is None else torch.full_like(index, label)
        return self.generator.latents(0, purpose, index, labels)

    @property
    def latent_shape(self) -> torch.Size:
        """Of one latent, without W+."""
        return self.latents("latents.example", torch.zeros(1, dtype=torch.int64), None).shape[1:]

    @torch.no_grad()
    def population(self, label: int | None, purpose: str, draws: int = DRAWS) -> Population:
        """What latents are like, measured on some.

        Args:
            label: their class; None: all classes in turn, or none where there are none.
            purpose: of the draws.
        """
        parts = [self.latents(purpose, torch.arange(start, min(start + _AT_ONCE, draws)), label).double()
                 for start in range(0, draws, _AT_ONCE)]
        latents = torch.cat(parts)
        mean = latents.mean(0)
        apart = (latents - mean).flatten(1)
        variances, directions = torch.linalg.eigh(apart.T @ apart / len(apart))
        # Directions in which latents hardly differ must not weigh without bounds.
        whitening = directions * variances.clamp(min=float(variances[-1]) * _FLATTEST).rsqrt()
        return Population(mean.float(), apart.square().sum(1).mean().sqrt().float(), whitening.float())


def open_trained(run_dir: str | os.PathLike, device: str | None = None, which: Which | None = None) -> Trained:
    """The averaged generator of a run.

    Args:
        device: its name; None: cuda if there is one, else cpu.
        which: the checkpoint; None: the newest.
    Raises:
        InputError: not a run, no such checkpoint, a damaged one, or no such device.
    """
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"), "--device")
    snapshot = load_generator(run_dir, place, which or "newest")
    return Trained(Path(run_dir), snapshot.generator, snapshot.shape, snapshot.kind, snapshot.nimg, snapshot.digest, place)
