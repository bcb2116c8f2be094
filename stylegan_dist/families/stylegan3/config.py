"""The knobs of StyleGAN3: its generator and its losses. The discriminator is StyleGAN2's."""

from __future__ import annotations

from dataclasses import dataclass

from stylegan_dist.config.knobs import (
    FIXED,
    MOST_KIMG,
    MOST_LAYERS,
    MOST_MAPS,
    MOST_WEIGHT,
    MOST_WIDTH,
    TOLD,
    Auto,
    FamilyConfig,
    knob,
)
from stylegan_dist.config.schedules import Scheduled
from stylegan_dist.families.stylegan2.config import DiscriminatorConfig
from stylegan_dist.objective.config import GameConfig

VARIANTS = ("t", "r")  # equivariant to translation; to rotation, too


@dataclass
class GeneratorConfig(FamilyConfig):
    z_dim: int = knob(512, FIXED, "width of the latent z", least=1, most=MOST_WIDTH)
    w_dim: int = knob(512, FIXED, "width of the mapping network and of w", least=1, most=MOST_WIDTH)
    mapping_layers: int = knob(2, FIXED, "fully connected layers from z to w", least=1, most=MOST_LAYERS)
    layers: int = knob(14, FIXED, "convolutions before toRGB; the last two are critically sampled", least=3, most=MOST_LAYERS)
    channel_base: int | Auto = knob("auto", FIXED,
        "a layer with cutoff frequency f has channel_base / 2f feature maps; auto: 32768, and 65536 of stylegan3-r",
        least=1, most=1 << 20)
    channel_max: int | Auto = knob("auto", FIXED,
        "upper limit of the feature maps; auto: 512, and 1024 of stylegan3-r", least=1, most=MOST_MAPS)
    w_avg_decay: float = knob(0.998, FIXED, "decay per step of the running mean of w that truncation pulls to", least=0, most=1)
    magnitude_half_life_kimg: float = knob(20.0, FIXED,
        "half-life of the running magnitudes that divide the layers' inputs", above=0, most=MOST_KIMG)


@dataclass
class LossConfig(GameConfig):
    r1_gamma: Scheduled | Auto = knob("auto", TOLD,
        "weight of the gradient penalty on real images; auto: R^2 / (1024 batch)", least=0, most=MOST_WEIGHT)
    blur_sigma: Scheduled | Auto = knob("auto", TOLD,
        "pixels; all images that the discriminator sees are convolved with 2^-(x / sigma)^2; auto: stylegan3-r from 10 to 0 in "
        "6.25 batch kimg, stylegan3-t 0", least=0, most=10)


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": LossConfig}
