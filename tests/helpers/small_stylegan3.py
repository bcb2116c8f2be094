"""StyleGAN3 at a size for tests."""

from __future__ import annotations

import reference
import torch
from launching import TINY_STYLEGAN3
from small_families import index_of

from stylegan_dist.config import load_config
from stylegan_dist.families.stylegan3.networks import Generator
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.rules import Resolved, resolve

CPU = torch.device("cpu")
BATCH = 8


def resolved(variant: str, *overrides: str, resolution: int = 16, classes: int = 0) -> Resolved:
    family = f"generator.family=stylegan3-{variant}"
    return resolve(load_config(None, ["data.shards=somewhere", family, *overrides]), index_of(resolution, classes))


def small(variant: str, *overrides: str, classes: int = 0) -> Resolved:
    return resolved(variant, *TINY_STYLEGAN3, "run.batch_gpu=2", *overrides, classes=classes)


def networks(variant: str, classes: int = 0) -> tuple[Generator, torch.nn.Module]:
    """With random weights, in float64."""
    config, shape = small(variant, classes=classes).config, SampleShape(16, 3, classes)
    g, d = build_generator(config, shape, CPU), build_discriminator(config, shape, CPU)
    for seed, network in enumerate((g, d)):
        frequencies = g.synthesis.input.frequencies.clone(), g.synthesis.input.phases.clone()
        reference.randomize(network, seed)
        g.synthesis.input.frequencies.copy_(frequencies[0]), g.synthesis.input.phases.copy_(frequencies[1])
    g.synthesis.input.transform.copy_(torch.eye(3))
    g.synthesis.magnitudes.copy_(torch.linspace(0.5, 2, len(g.synthesis.magnitudes)))
    return g.double(), d.double()
