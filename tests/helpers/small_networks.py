"""StyleGAN2 networks from a few numbers, everything else as published."""

from __future__ import annotations

from typing import Any

from stylegan_dist.families.stylegan2 import networks
from stylegan_dist.families.stylegan2.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision

BUILD = ("precision", "recompute")


def stylegan2_generator(resolution: int, channels: int, classes: int = 0, **options: Any) -> networks.Generator:
    """Options are knobs of the generator, `precision` and `recompute`."""
    build, knobs = _parted(options)
    settings = GeneratorConfig(**{"mapping_layers": 8, "channel_base": 32768, **knobs})
    return networks.Generator(SampleShape(resolution, channels, classes), settings, **build)


def stylegan2_discriminator(resolution: int, channels: int, classes: int = 0, **options: Any) -> networks.Discriminator:
    """Options are knobs of the discriminator, `precision` and `recompute`."""
    build, knobs = _parted(options)
    settings = DiscriminatorConfig(**{"channel_base": 32768, "mbstd_group": 4, **knobs})
    return networks.Discriminator(SampleShape(resolution, channels, classes), settings, **build)


def _parted(options: dict[str, Any]) -> tuple[dict[str, Precision | int], dict[str, Any]]:
    build = {name: options.pop(name) for name in BUILD if name in options}
    return build, options
