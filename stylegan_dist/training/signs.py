"""Signs that a game collapses though all values are finite. docs/reliability.md says why these numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# A loss whose discriminator decides by the sign of a logit.
SIGNED = ("nonsaturating", "minimax", "hinge")
SEPARATED = 0.98    # of each kind of image that the discriminator knows, over a tick: (1 + |mean sign|) / 2
SATURATED = 5       # such ticks in a row
R1_TICKS = 5        # with R1 before there is a level to compare with
R1_FACTOR = 10.0    # above its level
R1_MEMORY = 0.9     # of the level, from tick to tick
R1_LEAST = 1.0      # R1 below this, or below the loss of the game, does no harm
ALIKE = 0.2         # variety of the samples, as a part of that of the data
TRAINED = 1000      # images, before which samples may be alike because little has been learnt
APART = 10.0        # spread of the samples, as a multiple of that of the data

Sign = tuple[str, str]  # title and text


class Signs:
    """Looks at what has been measured anyway. Each sign is reported once.

    Args:
        adversarial: name of the adversarial loss.
    """

    def __init__(self, adversarial: str):
        self._adversarial = adversarial
        self._separated = 0  # ticks in a row
        self._r1_ticks, self._r1_level = 0, 0.0  # the level is a mean of logarithms
        self._told: set[str] = set()

    def of_tick(self, metrics: Mapping[str, float]) -> list[Sign]:
        """What a tick shows."""
        return [*self._saturation(metrics), *self._explosion(metrics)]

    def of_samples(self, samples: Tensor, reals: Tensor, nimg: int) -> list[Sign]:
        """What samples [N, ...] after `nimg` images and real images [n, ...] show, in the same range."""
        if len(reals) < 2:
            return []
        found = []
        here, there = variety(samples), variety(reals)
        if here < ALIKE * there and nimg >= TRAINED:
            found += self._once("samples alike", f"their variety is {here:.2f}, that of the data {there:.2f}: the generator "
                                                 "has collapsed to a few images; lower optim.g.lr, or raise loss.r1_gamma")
        here, there = spread(samples), spread(reals)
        if here > APART * there > 0:
            found += self._once("samples out of range", f"they differ by {here:.3g}, the data by {there:.3g}: lower optim.g.lr")
        return found

    def _saturation(self, metrics: Mapping[str, float]) -> list[Sign]:
        if self._adversarial not in SIGNED or "sign/real" not in metrics:
            return []
        known = min((1 + metrics["sign/real"]) / 2, (1 - metrics["sign/fake"]) / 2)
        self._separated = self._separated + 1 if known > SEPARATED else 0
        if self._separated < SATURATED:
            return []
        return self._once("discriminator saturated",
                          f"for {SATURATED} ticks it has known more than {SEPARATED:.0%} of the real and of the generated "
                          "images, so that the generator learns little from it; raise loss.r1_gamma, or lower optim.d.lr")

    def _explosion(self, metrics: Mapping[str, float]) -> list[Sign]:
        r1, game = metrics.get("loss/r1", 0.0), abs(metrics.get("loss/d_main", 0.0))
        if not 0 < r1 < math.inf:
            return []
        level = math.exp(self._r1_level)
        found: list[Sign] = []
        if self._r1_ticks >= R1_TICKS and r1 > max(R1_FACTOR * level, R1_LEAST, game):
            found = self._once("R1 explodes", f"it is {r1:.3g}, {r1 / level:.3g} times its level, and more than the loss of "
                                              f"the game ({game:.3g}); lower optim.d.lr")
        memory = R1_MEMORY if self._r1_ticks else 0.0
        self._r1_level = memory * self._r1_level + (1 - memory) * math.log(r1)
        self._r1_ticks += 1
        return found

    def _once(self, title: str, text: str) -> list[Sign]:
        if title in self._told:
            return []
        self._told.add(title)
        return [(title, text)]


def variety(images: Tensor) -> float:
    """1 - the mean correlation of two images [N, ...]: 0 if all are alike but for brightness and contrast."""
    flat = images.float().flatten(1)
    flat = torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True))
    own = flat.square().sum(1)  # 0 for an image of one value, which correlates with nothing
    count = int(own.count_nonzero())
    if count < 2:
        return 0.0
    return 1 - float((flat.sum(0).square().sum() - own.sum()) / (count * (count - 1)))


def spread(images: Tensor) -> float:
    """How much images [N, ...] differ from each other: the root of the mean variance of a value."""
    return float(images.float().var(dim=0).mean().sqrt())
