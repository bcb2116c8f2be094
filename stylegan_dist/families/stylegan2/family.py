"""StyleGAN2 as a family: construction of its networks, and its rules for `auto`.

The rules for the networks and R1 follow the `auto` configuration of Karras et al. 2020b, appendix C.
"""

from __future__ import annotations

import math
import re

from stylegan_dist.config import Config
from stylegan_dist.errors import InputError
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.families.stylegan2.networks import Discriminator, Generator, layers_from_image
from stylegan_dist.families.stylegan2.objective import StyleGan2Objective
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision, freeze

_BLOCK = re.compile(r"(?:synthesis\.)?b(\d+)\.")
_COLOURS = re.compile(r"(^fromrgb\.|\.torgb\.(weight|bias)$)")
# Names of what depends on the number of classes, and on whether there are any.
_BY_CLASS = {"g": ("mapping.embed.", "mapping.layers.0."), "d": ("mapping.embed.",)}
_CONDITIONAL = {"g": _BY_CLASS["g"], "d": ("mapping.", "out.")}


class StyleGan2(Family):
    """Karras et al. 2020, and 2020b for class conditioning, low precision and small images."""

    objective = StyleGan2Objective

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        return Generator(shape, config.generator, precision, config.run.recompute)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Discriminator:
        network = Discriminator(shape, config.discriminator, precision, config.run.recompute)
        freeze(network, self._layers(config, shape.resolution)[:config.discriminator.freeze_layers])
        return network

    @staticmethod
    def _layers(config: Config, resolution: int) -> list[str]:
        return layers_from_image(resolution, config.discriminator.architecture == "resnet")

    def carries_over(self, network: str, name: str, before: SampleShape, now: SampleShape) -> bool:
        if (block := _BLOCK.match(name)) and int(block[1]) > min(before.resolution, now.resolution):
            return False
        if before.resolution != now.resolution and network == "d" and name.startswith("fromrgb."):
            return False
        if before.channels != now.channels and _COLOURS.search(name):
            return False
        by_class = _BY_CLASS if before.num_classes and now.num_classes else _CONDITIONAL
        return before.num_classes == now.num_classes or not name.startswith(by_class[network])

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        auto(config.generator, "generator", "mapping_layers", 2, "the usual choice outside the paper's own presets")
        resolve_shared(config, resolution, auto)

    def check(self, config: Config, resolution: int) -> None:
        check_widths(config, resolution)
        self.check_frozen(config, self._layers(config, resolution))

    def group(self, config: Config) -> tuple[int, str]:
        group, loss = config.discriminator.mbstd_group, config.loss
        return (math.lcm(group, loss.path_length_shrink if loss.path_length_weight else 1),
                f"discriminator.mbstd_group={group} and loss.path_length_shrink={loss.path_length_shrink}")

    def learning_rate(self, resolution: int) -> float:
        return 0.002 if resolution >= 1024 else 0.0025

    def describe(self, config: Config) -> str:
        frozen = config.discriminator.freeze_layers
        return config.discriminator.architecture + (f", {frozen} layers frozen" if frozen else "")


def resolve_shared(config: Config, resolution: int, auto: Auto) -> None:
    """The rules for `auto` that hold for other families of the same blocks and game, too."""
    g, d, batch = config.generator, config.discriminator, config.run.batch
    auto(g, "generator", "channel_base", 32768 if resolution >= 512 else 16384, "from the resolution")
    auto(d, "discriminator", "channel_base", g.channel_base, "as the generator")
    group = next(n for n in (4, 3, 2, 1) if batch % n == 0)
    auto(d, "discriminator", "mbstd_group", group, "a divisor of the batch, at most 4")
    auto(config.loss, "loss", "r1_gamma", 0.0002 * resolution**2 / batch, "0.0002 R^2 / batch")


def check_widths(config: Config, resolution: int) -> None:
    """Raise InputError where a network would have no feature maps at the resolution of the data."""
    for name in ("generator", "discriminator"):
        if (base := getattr(config, name).channel_base) < resolution:
            raise InputError(f"{name}.channel_base={base} leaves no feature maps at {resolution} px: it must be at least "
                             f"{resolution}, and 16384 is usual")


FAMILY = StyleGan2()
