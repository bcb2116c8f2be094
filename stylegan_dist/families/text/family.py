"""The networks for text as a family: their construction and rules."""

from __future__ import annotations

from stylegan_dist.config import Config
from stylegan_dist.errors import InputError
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.families.r3gan.objective import R3GanObjective
from stylegan_dist.families.text.networks import Discriminator, Generator
from stylegan_dist.kinds import Kind, Text
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision


class TextFamily(Family):
    """Residual networks over positions, with the game of Huang et al. 2024."""

    objective = R3GanObjective

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        return Generator(shape, config.generator)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Discriminator:
        return Discriminator(shape, config.discriminator, precision)

    def check_kind(self, config: Config, kind: Kind) -> None:
        if not isinstance(kind, Text):
            raise InputError(f"generator.family=text makes lines of text, and the data has {kind.noun}: pack a text with "
                             "stylegan-dist pack --text, or choose another generator.family")

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        g, d, loss = config.generator, config.discriminator, config.loss
        for name in ("width", "blocks", "kernel"):
            auto(d, "discriminator", name, getattr(g, name), "as the generator")
        auto(loss, "loss", "r2_gamma", loss.r1_gamma, "as R1")

    def check(self, config: Config, resolution: int) -> None:
        for prefix in ("generator", "discriminator"):
            settings = getattr(config, prefix)
            for name in ("symbols", "length"):
                if (value := getattr(settings, name)) > resolution:
                    raise InputError(f"{prefix}.{name}={value} is more than the {resolution} rows and columns of the data: "
                                     "leave it at auto")
            if prefix == "generator" and settings.choices * settings.choice_of > settings.z_dim:
                raise InputError(f"generator.choices={settings.choices} groups of generator.choice_of={settings.choice_of} "
                                 f"numbers are more than generator.z_dim={settings.z_dim}: choose a larger z_dim, or fewer "
                                 "groups")
            if settings.kernel % 2 == 0:
                raise InputError(f"{prefix}.kernel={settings.kernel} has no middle: choose an odd number")
        if config.augment.pipe != "none":
            raise InputError(f"augment.pipe={config.augment.pipe} is made for pictures: leave augment.pipe at none for text")

    def group(self, config: Config) -> tuple[int, str]:
        return 1, "nothing: no lines are tied together"

    def learning_rate(self, resolution: int) -> float:
        return 0.001

    def describe(self, config: Config) -> str:
        return f"{config.discriminator.blocks} blocks over {config.discriminator.length} positions"


FAMILY = TextFamily()
