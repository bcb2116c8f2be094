"""The knobs of R3GAN: its networks and its losses."""

from __future__ import annotations

from dataclasses import dataclass

from stylegan_dist.config.knobs import (
    FIXED,
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
from stylegan_dist.config.schedules import Scheduled
from stylegan_dist.objective.config import GameConfig


@dataclass
class GeneratorConfig(FamilyConfig):
    z_dim: int = knob(64, FIXED, "width of the latent z", least=1, most=MOST_WIDTH)
    class_dim: int = knob(64, FIXED, "width of the embedding of the class label", least=1, most=MOST_WIDTH)
    channel_base: int | Auto = knob("auto", FIXED,
        "feature maps at resolution r are channel_base / r; auto: 32 channel_max, so all up to 32 px", least=1, most=1 << 20)
    channel_max: int = knob(768, FIXED, "upper limit of the feature maps", least=1, most=MOST_MAPS)
    group_width: int = knob(16, FIXED,
        "feature maps in each group of a 3x3 convolution, which has twice as many as the block", least=1, most=MOST_MAPS)
    blocks: int = knob(2, FIXED, "residual blocks at each resolution", least=1, most=MOST_LAYERS)


@dataclass
class DiscriminatorConfig:
    channel_base: int | Auto = knob("auto", FIXED, "auto: as the generator", least=1, most=1 << 20)
    channel_max: int | Auto = knob("auto", FIXED,
        "upper limit of the feature maps; auto: as the generator", least=1, most=MOST_MAPS)
    group_width: int | Auto = knob("auto", FIXED, "auto: as the generator", least=1, most=MOST_MAPS)
    blocks: int | Auto = knob("auto", FIXED,
        "residual blocks at each resolution; auto: as the generator", least=1, most=MOST_LAYERS)
    freeze_layers: int = knob(0, FIXED,
        "layers next to the image that do not learn after a transfer: fromRGB, then each residual block"
        " and each change of the width", least=0, most=MOST_LAYERS)


@dataclass
class LossConfig(GameConfig):
    adversarial: str = knob("relativistic", TOLD,
        "nonsaturating, minimax, hinge, wasserstein, least_squares, relativistic")
    r1_gamma: Scheduled | Auto = knob("auto", TOLD,
        "weight of the gradient penalty on real images; auto: 2 (R / 64)^3, near the published first values",
        least=0, most=MOST_WEIGHT)
    r2_gamma: Scheduled | Auto = knob("auto", TOLD,
        "weight of the gradient penalty on generated images; auto: r1_gamma", least=0, most=MOST_WEIGHT)
    penalty_interval: int = knob(1, TOLD,
        "steps between R1 and R2; 1 adds them to every discriminator step", least=1, most=MOST_STEPS)


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": LossConfig}
