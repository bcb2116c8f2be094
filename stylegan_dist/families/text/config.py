"""The knobs of the networks for text and of their game."""

from __future__ import annotations

from dataclasses import dataclass

from stylegan_dist.config.knobs import (
    FIXED,
    MOST_LAYERS,
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

MOST_SIDE = 1024


@dataclass
class GeneratorConfig(FamilyConfig):
    z_dim: int = knob(144, FIXED, "width of the latent z, with the groups of `choices`", least=1, most=MOST_WIDTH)
    choices: int = knob(2, FIXED,
        "groups of numbers of z of which only the place of the largest one counts: a code is chosen, none lies between two",
        least=0, most=64)
    choice_of: int = knob(64, FIXED, "numbers in each of these groups", least=2, most=MOST_WIDTH)
    class_dim: int = knob(32, FIXED, "width of the embedding of the class label", least=1, most=MOST_WIDTH)
    width: int = knob(128, FIXED, "features of each position; the paper has 512", least=1, most=MOST_WIDTH)
    blocks: int = knob(2, FIXED, "residual blocks; the paper has 5", least=1, most=MOST_LAYERS)
    kernel: int = knob(3, FIXED, "positions that a convolution sees, an odd number; the paper has 5", least=1, most=31)
    symbols: int | Auto = knob("auto", FIXED, "symbols of the alphabet; auto: those of the data", least=2, most=MOST_SIDE)
    length: int | Auto = knob("auto", FIXED, "positions of a line; auto: those of the data", least=1, most=MOST_SIDE)


@dataclass
class DiscriminatorConfig:
    width: int | Auto = knob("auto", FIXED, "features of each position; auto: as the generator", least=1, most=MOST_WIDTH)
    blocks: int | Auto = knob("auto", FIXED, "residual blocks; auto: as the generator", least=1, most=MOST_LAYERS)
    kernel: int | Auto = knob("auto", FIXED, "auto: as the generator", least=1, most=31)
    symbols: int | Auto = knob("auto", FIXED, "symbols that are looked at; auto: those of the data", least=2, most=MOST_SIDE)
    length: int | Auto = knob("auto", FIXED, "positions that are looked at; auto: those of the data", least=1, most=MOST_SIDE)


@dataclass
class LossConfig(GameConfig):
    adversarial: str = knob("relativistic", TOLD,
        "nonsaturating, minimax, hinge, wasserstein, least_squares, relativistic")
    r1_gamma: Scheduled = knob(1.0, TOLD, "weight of the gradient penalty on real lines", least=0, most=MOST_WEIGHT)
    r2_gamma: Scheduled | Auto = knob("auto", TOLD,
        "weight of the gradient penalty on generated lines, without which their softness alone gives them away; auto: r1_gamma",
        least=0, most=MOST_WEIGHT)
    penalty_interval: int = knob(1, TOLD,
        "steps between R1 and R2; 1 adds them to every discriminator step", least=1, most=MOST_STEPS)


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": LossConfig}
