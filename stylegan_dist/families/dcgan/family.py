"""DCGAN as a family: construction of its networks, and its rules for `auto`."""

from __future__ import annotations

import math

from stylegan_dist.config import Config
from stylegan_dist.errors import InputError
from stylegan_dist.families.dcgan.networks import Discriminator, Generator
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision
from stylegan_dist.objective.game import Objective

MOST_GROUP = 16  # images, where the group is a rule: a part of the batch that every usual number of ranks has


class DcGan(Family):
    """Radford et al. 2015."""

    objective = Objective  # real and generated images are normalised apart, as groups of their own

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        return Generator(shape, config.generator, precision, config.run.recompute)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Discriminator:
        return Discriminator(shape, config.discriminator, precision, config.run.recompute)

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        g, batch = config.generator, config.run.batch
        auto(g, "generator", "channel_base", 64 * resolution, "128 feature maps at half the resolution of the images")
        group = next(n for n in range(min(batch, MOST_GROUP), 0, -1) if batch % n == 0)
        auto(g, "generator", "norm_group", group, f"a divisor of the batch, at most {MOST_GROUP}")
        for name in ("kernel", "channel_base", "channel_max", "norm_group"):
            auto(config.discriminator, "discriminator", name, getattr(g, name), "as the generator")

    def check(self, config: Config, resolution: int) -> None:
        for name in ("generator", "discriminator"):
            if (base := getattr(config, name).channel_base) < resolution // 2:
                raise InputError(f"{name}.channel_base={base} leaves no feature maps at {resolution // 2} px: it must be at "
                                 f"least {resolution // 2}, and {64 * resolution} is usual")

    def group(self, config: Config) -> tuple[int, str]:
        g, d = config.generator.norm_group, config.discriminator.norm_group
        return math.lcm(g, d), f"generator.norm_group={g} and discriminator.norm_group={d}"

    def learning_rate(self, resolution: int) -> float:
        return 0.0002

    def describe(self, config: Config) -> str:
        return f"batch normalisation of {config.discriminator.norm_group} images"


FAMILY = DcGan()
