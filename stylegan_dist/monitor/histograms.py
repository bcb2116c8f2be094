"""Histograms with a fixed number of bins of equal width, and their file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from stylegan_dist.records import Count

BINS = 64


@dataclass(frozen=True)
class Histogram:
    """How many values are in each bin between `low` and `high`."""

    counts: Annotated[list[Count], Field(min_length=1, max_length=512)]  # W&B takes no more
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]

    @property
    def edges(self) -> np.ndarray:
        """Of the bins: float64 [bins + 1]."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)


def histogram_of(values: torch.Tensor) -> Histogram | None:
    """The histogram of the finite values of a tensor; None if there are none."""
    finite = values.detach().double().flatten().cpu()
    finite = finite[finite.isfinite()]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # else the edges of bins would be equal
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    if not math.isfinite(high - low):
        return None
    counts, _ = np.histogram(finite.numpy(), BINS, (low, high))
    return Histogram(counts.tolist(), low, high)


def to_json(histogram: Histogram) -> dict[str, Any]:
    """As a record of histograms.jsonl has it."""
    return {"counts": histogram.counts, "low": histogram.low, "high": histogram.high}
