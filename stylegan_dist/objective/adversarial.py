"""Adversarial losses: functions of logits, in a registry.

Each takes logits [N] of the discriminator and returns the loss of every image, [N]. "real" and "fake" are D(x) and
D(G(z)). All losses are minimised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """The two sides of a game.

    `paired` losses compare each fake with the real image of the same number and label, so the
    generator's step needs the real logits too. `anchored` losses give the sign of a logit a meaning: positive for what the
    discriminator takes for real. The others do not change if a number is added to all logits.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real, fake) -> [N]
    generator: Callable[[Tensor, Any], Tensor]  # (fake, real if paired, else None) -> [N]
    paired: bool = False
    anchored: bool = True


def _logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real) + F.softplus(fake)  # -log s(real) - log(1 - s(fake))


ADVERSARIAL = {
    # Goodfellow et al. 2014, section 3, the heuristic game: G maximises log s(D(G(z))).
    "nonsaturating": AdversarialLoss(_logistic_discriminator, lambda fake, _: F.softplus(-fake)),
    # Goodfellow et al. 2014, equation 1: G minimises log(1 - s(D(G(z)))).
    "minimax": AdversarialLoss(_logistic_discriminator, lambda fake, _: -F.softplus(fake)),
    # Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17.
    "hinge": AdversarialLoss(lambda real, fake: F.relu(1 - real) + F.relu(1 + fake), lambda fake, _: -fake),
    # Arjovsky et al. 2017, equation 2; the Lipschitz bound has to come from a gradient penalty.
    "wasserstein": AdversarialLoss(lambda real, fake: fake - real, lambda fake, _: -fake, anchored=False),
    # Mao et al. 2017, equation 9 (a = 0, b = c = 1).
    "least_squares": AdversarialLoss(
        lambda real, fake: 0.5 * ((real - 1).square() + fake.square()), lambda fake, _: 0.5 * (fake - 1).square()
    ),
    # Jolicoeur-Martineau 2018, equation 4; Huang et al. 2024, equation 2 (RpGAN).
    "relativistic": AdversarialLoss(
        lambda real, fake: F.softplus(fake - real), lambda fake, real: F.softplus(real - fake), paired=True, anchored=False
    ),
}


