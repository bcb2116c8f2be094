"""A phase is data: the network that learns, its losses, and its interval.

Every loss works on a micro-batch and returns *shares of global means*: sums over its images, divided by the number of
images in the global batch. The shares of all micro-batches and ranks add up to the mean. No result depends on how the
batch was split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from stylegan_dist.objective.result import LossResult


@dataclass
class MicroBatch:
    """Real images that a rank computes at once, and in some steps as many held-out ones."""

    images: Tensor         # float [n, C, H, W] in [-1, 1]
    labels: Tensor | None  # int64 [n]; None for an unconditional run
    index: Tensor          # int64 [n], consecutive global image numbers
    held_out: Tensor | None = None         # as images; never learned from
    held_out_labels: Tensor | None = None  # as labels


Loss = Callable[[MicroBatch], LossResult]


@dataclass(frozen=True)
class Phase:
    """One backward pass and optimizer step of one network."""

    name: str
    network: str               # "g" or "d"
    interval: int              # takes place in every interval-th step
    losses: tuple[Loss, ...]   # added up
    second_order: bool         # whether a loss differentiates through a gradient of this network
    regulariser: bool = False  # whether it only regularises, in steps beside those of the game


@dataclass(frozen=True)
class Regulariser:
    """A loss that is added to a network's game in every interval-th step."""

    name: str
    loss: Loss
    interval: int
    second_order: bool


def phases_of(network: str, main: Loss, regulariser: Regulariser | None) -> list[Phase]:
    """The phases of a network: its side of the game, and its regulariser, which joins that if its interval is 1."""
    name = f"{network}_main"
    if regulariser is None:
        return [Phase(name, network, 1, (main,), second_order=False)]
    if regulariser.interval == 1:
        return [Phase(name, network, 1, (main, regulariser.loss), regulariser.second_order)]
    r = regulariser
    return [Phase(name, network, 1, (main,), second_order=False),
            Phase(r.name, network, r.interval, (r.loss,), r.second_order, regulariser=True)]


def main_share(phases: Sequence[Phase], network: str) -> float:
    """The part of a network's optimizer steps that belongs to its game, not to regularisers: m in (0, 1].

    A regulariser of interval k adds one step to every k of the main phase, m = k / (k + 1) (Karras et al. 2020, appendix B).
    Several add up, m = 1 / (1 + sum of 1 / k). The paper has no such case. Without regularisers m is 1, also for a main phase
    that is not due in every step.
    """
    def steps(regulariser: bool) -> Fraction:
        of_both = (phase for phase in phases if phase.network == network and phase.regulariser == regulariser)
        return sum((Fraction(1, phase.interval) for phase in of_both), Fraction())

    return float(steps(False) / (steps(False) + steps(True)))
