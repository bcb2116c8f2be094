"""Scores of a kind of samples, computed from the samples themselves, without a feature network."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor


class Measured(NamedTuple):
    """A score.

    Attributes:
        error: one standard error; None where none is known.
        floor: the same of real samples; None where that means nothing.
    """

    value: float
    error: float | None = None
    floor: float | None = None
    lower_is_better: bool = True


class SampleMetric(abc.ABC):
    """One or several scores that belong together.

    Each sample becomes a row of numbers, on the rank and the device where the sample is. The scores are a function of the
    rows of all samples.

    Attributes:
        about: what it says, for people.
        scores: their names; the first one decides which checkpoint is the best, where the metric is the first.
        most_real: of real samples whose rows it needs, in a shuffled order of the set; fewer where the set has fewer.
    """

    about: ClassVar[str]
    scores: ClassVar[tuple[str, ...]]
    most_real: ClassVar[int]

    @property
    def common(self) -> Any:
        """What samples must have in common, so that their rows can be compared."""
        return None

    @abc.abstractmethod
    def width(self, resolution: int, channels: int) -> int:
        """Numbers in a row."""

    @abc.abstractmethod
    def rows(self, values: Tensor) -> Tensor:
        """Samples [n, C, H, W] in the network's range, of the data or of a generator, to float32 [n, width].

        A row depends on its sample alone.
        """

    @abc.abstractmethod
    def measure(self, real: Tensor, generated: Tensor) -> Mapping[str, Measured]:
        """All of `scores` from rows, float32 on the CPU, of real samples [m, width] and of generated ones [n, width].

        Raises:
            InputError: too few samples.
        """
