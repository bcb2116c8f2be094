"""The knobs of StyleGAN2: its networks and its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stylegan_dist.config.knobs import (
    FIXED,
    MOST_IMAGES,
    MOST_LAYERS,
    MOST_MAPS,
    MOST_STEPS,
    MOST_WEIGHT,
    MOST_WIDTH,
    TOLD,
    Auto,
    FamilyConfig,
    knob,
)


@dataclass
class GeneratorConfig(FamilyConfig):
    z_dim: int = knob(512, FIXED, "width of the latent z", least=1, most=MOST_WIDTH)
    w_dim: int = knob(512, FIXED, "width of the mapping network and of w", least=1, most=MOST_WIDTH)
    mapping_layers: int | Auto = knob("auto", FIXED, "fully connected layers from z to w; auto: 2", least=1, most=MOST_LAYERS)
    channel_base: int | Auto = knob("auto", FIXED,
        "feature maps at resolution r are channel_base / r; auto: 32768 from 512 px", least=1, most=1 << 20)
    channel_max: int = knob(512, FIXED, "upper limit of the feature maps", least=1, most=MOST_MAPS)
    w_avg_decay: float = knob(0.995, FIXED, "decay per step of the running mean of w that truncation pulls to", least=0, most=1)


@dataclass
class DiscriminatorConfig:
    architecture: Literal["resnet", "orig"] = knob("resnet", FIXED, "resnet: residual blocks; orig: none")
    channel_base: int | Auto = knob("auto", FIXED, "auto: as the generator", least=1, most=1 << 20)
    channel_max: int = knob(512, FIXED, "upper limit of the feature maps", least=1, most=MOST_MAPS)
    mapping_layers: int = knob(8, FIXED,
        "fully connected layers from the class label to the projection", least=1, most=MOST_LAYERS)
    mbstd_group: int | Auto = knob("auto", FIXED,
        "images per group of the minibatch standard deviation; auto: at most 4", least=1, most=MOST_IMAGES)


@dataclass
class LossConfig:
    adversarial: str = knob("nonsaturating", TOLD, "nonsaturating, minimax, hinge, wasserstein, least_squares, relativistic")
    r1_gamma: float | Auto = knob("auto", TOLD,
        "weight of the gradient penalty on real images; auto: 0.0002 R^2 / batch", least=0, most=MOST_WEIGHT)
    r2_gamma: float = knob(0.0, TOLD, "weight of the gradient penalty on generated images", least=0, most=MOST_WEIGHT)
    penalty_interval: int = knob(16, TOLD,
        "steps between R1 and R2; 1 adds them to every discriminator step", least=1, most=MOST_STEPS)
    penalty: Literal["exact", "approximate"] = knob("exact", TOLD,
        "approximate: estimate R1 and R2 without double backward, in full precision; for networks too large for it")
    penalty_sigma: float = knob(0.01, TOLD,
        "approximate penalty: size of the noise added to images in [-1, 1]", above=0, most=10)
    path_length_weight: float = knob(2.0, TOLD,
        "weight of path length regularisation; 0 switches it off", least=0, most=MOST_WEIGHT)
    path_length_interval: int = knob(4, TOLD,
        "steps between path length regularisations; 1 adds it to every generator step", least=1, most=MOST_STEPS)
    path_length_decay: float = knob(0.01, TOLD,
        "speed at which the target path length follows the measured one, per use", least=0, most=1)
    path_length_shrink: int = knob(2, TOLD,
        "path lengths are measured on every n-th image of the batch", least=1, most=MOST_IMAGES)
    style_mixing: float = knob(0.9, TOLD,
        "probability that an image uses two latents, split at a random layer", least=0, most=1)


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": LossConfig}
