"""GAT at a size for tests."""

from __future__ import annotations

from pathlib import Path

import reference
import small_families
import torch
from small_families import index_of
from torch import Tensor

from stylegan_dist.config import load_config
from stylegan_dist.families.gat.networks import Discriminator, Generator
from stylegan_dist.families.gat.objective import GatObjective
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.rules import resolve

CPU, META = torch.device("cpu"), torch.device("meta")
BATCH, CLASSES = 8, 3
SMALL = ("generator.family=gat", "generator.z_dim=6", "generator.class_dim=3", "generator.patch=2", "generator.depth=8",
         "generator.width=16", "generator.heads=2", "generator.hidden=12", "discriminator.depth=2", "discriminator.width=24",
         "discriminator.heads=3", "discriminator.class_dim=10", "discriminator.hidden=20", f"run.batch={BATCH}",
         "run.batch_gpu=2")
OF_G, OF_D = (2, 4, 2), (3, 4, 2)  # heads, tokens in a row, patch


def resolved(*overrides: str, resolution: int = 8, classes: int = 0, channels: int = 3, preset: Path | None = None):
    return resolve(load_config(preset, ["data.shards=somewhere", *overrides]), index_of(resolution, classes, channels)).config


def networks(*overrides: str, classes: int = 0, random: bool = True) -> tuple[Generator, Discriminator]:
    """As they begin, or with random weights; in float64."""
    config, shape = resolved(*SMALL, *overrides, classes=classes), SampleShape(8, 3, classes)
    g, d = build_generator(config, shape, CPU), build_discriminator(config, shape, CPU)
    if random:
        for seed, network in enumerate((g, d)):
            reference.randomize(network, seed)
            for name, p in network.named_parameters():
                p.data *= (100 if "mapping.first" in name or "mapping.second" in name else 1) / max(p[0].numel(), 1) ** 0.5
    return g.double(), d.double()


def objective_of(*overrides: str, classes: int = 0, random: bool = True) -> GatObjective:
    g, d = networks(*overrides, classes=classes, random=random)
    counts = torch.tensor([8] * classes) if classes else None
    return GatObjective(resolved(*SMALL, *overrides, classes=classes), g, d, counts)


def batch_of(classes: int = 0) -> MicroBatch:
    return small_families.batch_of(reference.normals(0, BATCH, 3, 8, 8), classes)


def gradients(share: Tensor, network: torch.nn.Module) -> dict[str, Tensor]:
    found = torch.autograd.grad(share, list(network.parameters()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(network.named_parameters(), found, strict=True)}
