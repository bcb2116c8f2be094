"""The knobs of the toy."""

from dataclasses import dataclass

from stylegan_dist.config.knobs import FIXED, FamilyConfig, knob
from stylegan_dist.objective.config import GameConfig


@dataclass
class GeneratorConfig(FamilyConfig):
    latent: int | str = knob("auto", FIXED, "width of the latent; auto: 4", least=1, most=64)


@dataclass
class DiscriminatorConfig:
    gain: float = knob(1.0, FIXED, "factor on the logits", least=0, most=10)


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": GameConfig}
