"""The knobs of GAT: its networks and its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

LEVELS = 4  # of the generator's outputs, each after a quarter of its blocks


@dataclass
class GeneratorConfig(FamilyConfig):
    z_dim: int = knob(64, FIXED, "width of the latent z", least=1, most=MOST_WIDTH)
    class_dim: int = knob(64, FIXED, "width of the embedding of the class label", least=1, most=MOST_WIDTH)
    patch: int | Auto = knob("auto", FIXED,
        "side of the square that is one token; auto: R / 16, so 256 tokens, and at least 1", least=1, most=512)
    depth: int = knob(12, FIXED, "transformer blocks, a multiple of 4: an output follows each quarter", least=LEVELS,
        most=MOST_LAYERS)
    width: int = knob(384, FIXED, "numbers of a token, and of w", least=4, most=MOST_WIDTH)
    heads: int | Auto = knob("auto", FIXED, "of an attention; auto: width / 64", least=1, most=MOST_WIDTH)
    hidden: int | Auto = knob("auto", FIXED, "units between the two layers of an MLP; auto: 8/3 width", least=1,
        most=4 * MOST_WIDTH)
    w_avg_decay: float = knob(0.995, FIXED,
        "decay per step of the running mean of w of each class in the batch, that truncation pulls to", least=0, most=1)


@dataclass
class DiscriminatorConfig:
    class_dim: int = knob(2048, FIXED, "width of the embedding of the class label, and of the features that meet it", least=1,
        most=MOST_WIDTH)
    patch: int | Auto = knob("auto", FIXED, "side of the square that is one token; auto: as the generator", least=1, most=512)
    depth: int | Auto = knob("auto", FIXED, "transformer blocks; auto: as the generator", least=1, most=MOST_LAYERS)
    width: int | Auto = knob("auto", FIXED, "numbers of a token; auto: as the generator", least=4, most=MOST_WIDTH)
    heads: int | Auto = knob("auto", FIXED, "of an attention; auto: as the generator, or width / 64 at another width", least=1,
        most=MOST_WIDTH)
    hidden: int | Auto = knob("auto", FIXED, "units between the two layers of an MLP; auto: 8/3 width", least=1,
        most=4 * MOST_WIDTH)


@dataclass
class LossConfig(GameConfig):
    adversarial: str = knob("relativistic", TOLD,
        "nonsaturating, minimax, hinge, wasserstein, least_squares, relativistic")
    r1_gamma: Scheduled = knob(0.1, TOLD, "weight of the gradient penalty on real images", least=0, most=MOST_WEIGHT)
    r2_gamma: Scheduled | Auto = knob("auto", TOLD,
        "weight of the gradient penalty on generated images, all levels together; auto: r1_gamma", least=0, most=MOST_WEIGHT)
    penalty_interval: int = knob(1, TOLD,
        "steps between R1 and R2; 1 adds them to every discriminator step", least=1, most=MOST_STEPS)
    penalty: Literal["exact", "approximate"] = knob("approximate", TOLD,
        "approximate: estimate R1 and R2 without double backward; exact: with attention in plain operations")


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": LossConfig}
