"""The knobs of the first networks and their game."""

from __future__ import annotations

from dataclasses import dataclass

from stylegan_dist.config.knobs import FIXED, MOST_LAYERS, MOST_WEIGHT, MOST_WIDTH, TOLD, FamilyConfig, knob
from stylegan_dist.config.schedules import Scheduled
from stylegan_dist.objective.config import GameConfig


@dataclass
class GeneratorConfig(FamilyConfig):
    z_dim: int = knob(100, FIXED, "width of the latent z, uniform between -sqrt(3) and sqrt(3)", least=1, most=MOST_WIDTH)
    class_dim: int = knob(50, FIXED, "width of the embedding of the class label", least=1, most=MOST_WIDTH)
    width: int = knob(1200, FIXED, "rectified linear units of each layer", least=1, most=MOST_WIDTH)
    layers: int = knob(2, FIXED, "layers before the one that makes the image", least=1, most=MOST_LAYERS)


@dataclass
class DiscriminatorConfig:
    class_dim: int = knob(50, FIXED, "width of the embedding of the class label", least=1, most=MOST_WIDTH)
    width: int = knob(240, FIXED, "maxout units of each layer", least=1, most=MOST_WIDTH)
    layers: int = knob(2, FIXED, "maxout layers before the logit", least=1, most=MOST_LAYERS)
    pieces: int = knob(5, FIXED, "linear functions of which a maxout unit takes the largest", least=1, most=64)
    image_dropout: float = knob(0.2, FIXED, "probability that dropout takes a value of an image out", least=0, most=0.99)
    dropout: float = knob(0.5, FIXED, "probability that dropout takes a maxout unit out", least=0, most=0.99)


@dataclass
class LossConfig(GameConfig):
    r1_gamma: Scheduled = knob(0.0, TOLD,
        "weight of the gradient penalty on real images; the paper has none", least=0, most=MOST_WEIGHT)


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": LossConfig}
