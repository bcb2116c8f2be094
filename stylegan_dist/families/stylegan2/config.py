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
from stylegan_dist.objective.config import GameConfig


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
        "fully connected layers from the class label to the projection, after its embedding", least=0, most=MOST_LAYERS)
    mbstd_group: int | Auto = knob("auto", FIXED,
        "images per group of the minibatch standard deviation; auto: at most 4", least=1, most=MOST_IMAGES)
    freeze_layers: int = knob(0, FIXED,
        "layers next to the image that do not learn after a transfer: fromRGB, then each convolution of the top block, its skip"
        ", and so on: 4, 7, 10, 13 are whole blocks (Mo et al. 2020)", least=0, most=MOST_LAYERS)


@dataclass
class LossConfig(GameConfig):
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
