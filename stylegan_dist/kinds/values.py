"""Least, greatest, mean and spread of the values of arrays, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stylegan_dist.records import Count


@dataclass(frozen=True)
class Values:
    """Of some arrays; each list has one number for each channel. Stored as JSON without loss.

    Parts are added in the order of the set, so that the result does not depend on who computed which. Means and
    sums of squares are updated as by Chan, Golub and LeVeque (1983), without cancellation.
    """

    count: Count            # values of a channel
    least: list[float]
    greatest: list[float]
    mean: list[float]
    squares: list[float]    # sums of the squared differences from the mean

    @property
    def fits(self) -> bool:
        """Whether the lists agree, as they do unless the record was damaged."""
        return len(self.least) == len(self.greatest) == len(self.mean) == len(self.squares)

    @classmethod
    def of(cls, array: np.ndarray) -> Values:
        """Of one array [C, H, W]."""
        rows = array.reshape(len(array), -1).astype(np.float64)
        mean = rows.mean(1)
        squares = ((rows - mean[:, None]) ** 2).sum(1)
        return cls(rows.shape[1], rows.min(1).tolist(), rows.max(1).tolist(), mean.tolist(), squares.tolist())

    def __add__(self, other: Values) -> Values:
        """Of these arrays and of those, which come after them."""
        total, step = self.count + other.count, np.subtract(other.mean, self.mean)
        squares = np.add(self.squares, other.squares) + step**2 * (self.count * other.count / total)
        return Values(total, np.minimum(self.least, other.least).tolist(), np.maximum(self.greatest, other.greatest).tolist(),
                      (self.mean + step * (other.count / total)).tolist(), squares.tolist())

    def normalisation(self, how: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Offset and scale of each channel: "range": to [-1, 1]; "std": mean 0, standard deviation 1/2; "none"."""
        if how == "none":
            return (0.0,), (1.0,)
        if how == "range":
            offset, scale = np.add(self.greatest, self.least) / 2, np.subtract(self.greatest, self.least) / 2
        else:
            offset, scale = np.array(self.mean), 2 * np.sqrt(np.array(self.squares) / self.count)
        scale[scale == 0] = 1  # a channel that is the same everywhere
        return tuple(offset.tolist()), tuple(scale.tolist())


def added(first: Values | None, second: Values | None) -> Values | None:
    """The sum of what is there."""
    return first + second if first and second else first or second
