"""StyleGAN3 as a family of two variants: construction of its networks, and its rules for `auto`."""

from __future__ import annotations

from stylegan_dist.config import Config
from stylegan_dist.config.schedules import Schedule
from stylegan_dist.errors import InputError
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.families.stylegan2.family import FAMILY as STYLEGAN2
from stylegan_dist.families.stylegan2.networks import Discriminator, layers_from_image
from stylegan_dist.families.stylegan3.config import VARIANTS
from stylegan_dist.families.stylegan3.layout import layers_of
from stylegan_dist.families.stylegan3.networks import Generator
from stylegan_dist.families.stylegan3.objective import StyleGan3Objective
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision

LEAST_RESOLUTION = 8
BLUR_SIGMA = 10.0    # pixels, of the first images
BLUR_KIMG = 6.25     # for each image of the batch: 200 kimg at batch 32


class StyleGan3(Family):
    """Karras et al. 2021, with the discriminator of Karras et al. 2020.

    Args:
        rotates: configuration R, equivariant to rotation.
    """

    objective = StyleGan3Objective
    moves = True

    def __init__(self, rotates: bool):
        self.rotates = rotates

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        return Generator(shape, config.generator, self.rotates, precision, config.run.recompute)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Discriminator:
        return STYLEGAN2.discriminator(config, shape, precision)

    def carries_over(self, network: str, name: str, before: SampleShape, now: SampleShape) -> bool:
        same = (before.resolution, before.channels) == (now.resolution, now.channels)
        if network == "g" and name.startswith("synthesis.") and not same:  # its layers have other frequencies
            return False
        return STYLEGAN2.carries_over(network, name, before, now)

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        g, d, loss, batch = config.generator, config.discriminator, config.loss, config.run.batch
        wider = 2 if self.rotates else 1
        auto(g, "generator", "channel_base", 32768 * wider, "as published")
        auto(g, "generator", "channel_max", 512 * wider, "as published")
        auto(d, "discriminator", "channel_base", max(g.channel_base // wider, 1),
             "half of the generator's" if self.rotates else "as the generator")
        group = next(n for n in (4, 3, 2, 1) if batch % n == 0)
        auto(d, "discriminator", "mbstd_group", group, "a divisor of the batch, at most 4")
        auto(loss, "loss", "r1_gamma", resolution**2 / (1024 * batch), "R^2 / (1024 batch): 2 for 256 px and batch 32")
        auto(loss, "loss", "blur_sigma", Schedule("linear", BLUR_SIGMA, 0.0, BLUR_KIMG * batch)
             if self.rotates and not config.run.init_from else 0.0, "as published")
        if config.optim.d.name.startswith("Adam"):
            auto(config.optim.d, "optim.d", "lr", 0.002, "as published")

    def check(self, config: Config, resolution: int) -> None:
        g, base = config.generator, config.discriminator.channel_base
        if resolution < LEAST_RESOLUTION:
            raise InputError(f"stylegan3 needs images of at least {LEAST_RESOLUTION} px, and these have {resolution}: use "
                             "another generator.family")
        if base < resolution:
            raise InputError(f"discriminator.channel_base={base} leaves no feature maps at {resolution} px: it must be at "
                             f"least {resolution}, and 32768 is usual")
        self.check_frozen(config, layers_from_image(resolution, config.discriminator.architecture == "resnet"))
        if not all(layer.after.channels for layer in layers_of(resolution, 1, g.channel_base, g.channel_max, 1, g.layers)):
            raise InputError(f"generator.channel_base={g.channel_base} leaves no feature maps in the last layers at "
                             f"{resolution} px: it must be at least {resolution}, and 32768 is usual")

    def group(self, config: Config) -> tuple[int, str]:
        group = config.discriminator.mbstd_group
        return group, f"discriminator.mbstd_group={group}"

    def learning_rate(self, resolution: int) -> float:
        return 0.0025

    def describe(self, config: Config) -> str:
        return STYLEGAN2.describe(config)


FAMILY = {variant: StyleGan3(variant == "r") for variant in VARIANTS}
