"""The knobs of the adversarial game. The section `loss` of every family begins with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stylegan_dist.config.knobs import MOST_STEPS, MOST_WEIGHT, TOLD, Auto, knob
from stylegan_dist.config.schedules import Scheduled


@dataclass
class GameConfig:
    adversarial: str = knob("nonsaturating", TOLD, "nonsaturating, minimax, hinge, wasserstein, least_squares, relativistic")
    r1_gamma: Scheduled | Auto = knob("auto", TOLD,
        "weight of the gradient penalty on real images; auto: 0.0002 R^2 / batch", least=0, most=MOST_WEIGHT)
    r2_gamma: Scheduled = knob(0.0, TOLD, "weight of the gradient penalty on generated images", least=0, most=MOST_WEIGHT)
    penalty_interval: int = knob(16, TOLD,
        "steps between R1 and R2; 1 adds them to every discriminator step", least=1, most=MOST_STEPS)
    penalty: Literal["exact", "approximate"] = knob("exact", TOLD,
        "approximate: estimate R1 and R2 without double backward, in full precision; for networks too large for it")
    penalty_sigma: float = knob(0.01, TOLD,
        "approximate penalty: size of the noise added to images in [-1, 1]", above=0, most=10)
    penalty_precision: Literal["full", "run"] = knob("full", TOLD,
        "approximate penalty: full: all of the discriminator in full precision; run: in that of the run, which costs less on "
        "GPUs, and is mostly rounding with a penalty_sigma below 0.03 (docs/penalties.md)")
