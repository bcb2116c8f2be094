"""R3GAN as a family: construction of its networks, and its rules for `auto`."""

from __future__ import annotations

import re

from stylegan_dist.config import Config
from stylegan_dist.errors import InputError
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.families.r3gan.networks import EXPANSION, Discriminator, Generator, layers_from_image
from stylegan_dist.families.r3gan.objective import R3GanObjective
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision, channels_at, freeze, resolutions

_BLOCK = re.compile(r"b(\d+)\.")


class R3Gan(Family):
    """Huang et al. 2024."""

    objective = R3GanObjective

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        return Generator(shape, config.generator, precision, config.run.recompute)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Discriminator:
        network = Discriminator(shape, config.discriminator, precision, config.run.recompute)
        freeze(network, layers_from_image(shape.resolution, config.discriminator)[:config.discriminator.freeze_layers])
        return network

    def carries_over(self, network: str, name: str, before: SampleShape, now: SampleShape) -> bool:
        if (block := _BLOCK.match(name)) and int(block[1]) > min(before.resolution, now.resolution):
            return False
        if name.startswith(("fromrgb.", "torgb.")):
            return (before.resolution, before.channels) == (now.resolution, now.channels)
        conditional = network == "g" or not (before.num_classes and now.num_classes)
        by_class = ("embed.", "dense.") if conditional else ("embed.",)
        return before.num_classes == now.num_classes or not name.startswith(by_class)

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        g, loss = config.generator, config.loss
        auto(g, "generator", "channel_base", 32 * g.channel_max, "all feature maps up to 32 px")
        for name in ("channel_base", "channel_max", "group_width", "blocks"):
            auto(config.discriminator, "discriminator", name, getattr(g, name), "as the generator")
        auto(loss, "loss", "r1_gamma", 2 * (resolution / 64) ** 3, "2 (R / 64)^3, near the published first values")
        auto(loss, "loss", "r2_gamma", loss.r1_gamma, "as R1")

    def check(self, config: Config, resolution: int) -> None:
        for name in ("generator", "discriminator"):
            settings = getattr(config, name)
            for r in resolutions(resolution):
                width = channels_at(r, settings)
                if width == 0:
                    raise InputError(f"{name}.channel_base={settings.channel_base} leaves no feature maps at {r} px: it must "
                                     f"be at least {r}, and 24576 is usual")
                if EXPANSION * width % settings.group_width:
                    raise InputError(f"{name}.group_width={settings.group_width} does not divide the {EXPANSION * width} "
                                     f"feature maps of the 3x3 convolutions at {r} px: choose a divisor, or another "
                                     f"{name}.channel_base or {name}.channel_max")

        self.check_frozen(config, layers_from_image(resolution, config.discriminator))

    def group(self, config: Config) -> tuple[int, str]:
        return 1, "nothing: no images are tied together"

    def learning_rate(self, resolution: int) -> float:
        return 0.0002

    def describe(self, config: Config) -> str:
        frozen = config.discriminator.freeze_layers
        return f"{config.discriminator.blocks} blocks a resolution" + (f", {frozen} layers frozen" if frozen else "")


FAMILY = R3Gan()
