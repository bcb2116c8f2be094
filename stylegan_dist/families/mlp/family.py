"""The first networks as a family: their construction and rules."""

from __future__ import annotations

from stylegan_dist.config import Config
from stylegan_dist.families.family import Auto, Family
from stylegan_dist.families.mlp.networks import Discriminator, Generator
from stylegan_dist.families.mlp.objective import MlpObjective
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Precision


class Mlp(Family):
    """Goodfellow et al. 2014."""

    objective = MlpObjective

    def generator(self, config: Config, shape: SampleShape, precision: Precision) -> Generator:
        return Generator(shape, config.generator)

    def discriminator(self, config: Config, shape: SampleShape, precision: Precision) -> Discriminator:
        return Discriminator(shape, config.discriminator, precision)

    def resolve(self, config: Config, resolution: int, auto: Auto) -> None:
        pass

    def check(self, config: Config, resolution: int) -> None:
        pass

    def group(self, config: Config) -> tuple[int, str]:
        return 1, "nothing: no images are tied together"

    def learning_rate(self, resolution: int) -> float:
        return 0.0002

    def describe(self, config: Config) -> str:
        return f"{config.discriminator.layers} maxout layers"


FAMILY = Mlp()
