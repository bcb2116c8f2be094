"""The result of a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class LossResult(NamedTuple):
    """A rank's shares of global means. Summed over all micro-batches and ranks, each is the mean over the global batch."""

    share: Tensor  # of the loss; the one that is differentiated
    statistics: Mapping[str, Tensor]  # numbers to report, by the name of the metric
    running_means: Mapping[str, Tensor] = {}  # for `Objective.after_phase`: towards which running means move; a sum of signs
