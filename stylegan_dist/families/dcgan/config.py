"""The knobs of DCGAN: its networks and its losses."""

from __future__ import annotations

from dataclasses import dataclass

from stylegan_dist.config.knobs import (
    FIXED,
    MOST_IMAGES,
    MOST_MAPS,
    MOST_WEIGHT,
    MOST_WIDTH,
    TOLD,
    Auto,
    FamilyConfig,
    knob,
)
from stylegan_dist.config.schedules import Scheduled
from stylegan_dist.objective.config import GameConfig


@dataclass
class GeneratorConfig(FamilyConfig):
    z_dim: int = knob(100, FIXED, "width of the latent z, uniform between -1 and 1", least=1, most=MOST_WIDTH)
    class_dim: int = knob(50, FIXED, "width of the embedding of the class label", least=1, most=MOST_WIDTH)
    kernel: int = knob(5, FIXED, "size of the transposed convolutions; 5: as published; 4: faster", least=4, most=5)
    channel_base: int | Auto = knob("auto", FIXED,
        "feature maps at resolution r are channel_base / r; auto: 64 R, so 128 at half the resolution of the images",
        least=1, most=1 << 20)
    channel_max: int = knob(1024, FIXED, "upper limit of the feature maps", least=1, most=MOST_MAPS)
    norm_group: int | Auto = knob("auto", FIXED,
        "consecutive images over which batch normalisation measures means and variances; auto: at most 16",
        least=1, most=MOST_IMAGES)


@dataclass
class DiscriminatorConfig:
    kernel: int | Auto = knob("auto", FIXED, "size of the convolutions; auto: as the generator", least=4, most=5)
    channel_base: int | Auto = knob("auto", FIXED, "auto: as the generator", least=1, most=1 << 20)
    channel_max: int | Auto = knob("auto", FIXED,
        "upper limit of the feature maps; auto: as the generator", least=1, most=MOST_MAPS)
    norm_group: int | Auto = knob("auto", FIXED,
        "images of a group of batch normalisation; auto: as the generator", least=1, most=MOST_IMAGES)


@dataclass
class LossConfig(GameConfig):
    r1_gamma: Scheduled = knob(0.0, TOLD,
        "weight of the gradient penalty on real images; the paper has none", least=0, most=MOST_WEIGHT)


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": LossConfig}
