"""Ranges of numbers. Each is declared with its number, checked when a value comes in, and shown to people."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SEED = 2**32 - 1  # a seed is one word of the key of every draw


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both included. With `above`, the numbers greater than it, instead of `least`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        if (self.least is None) == (self.above is None) or self.most is None:
            raise TypeError("a range has one lower bound, least or above, and an upper one, most")

    def __contains__(self, number: float) -> bool:
        """Whether it lies in the range; NaN lies in none."""
        below = number > self.above if self.above is not None else number >= self.least  # type: ignore[operator]
        return below and number <= self.most  # type: ignore[operator]

    def __str__(self) -> str:
        """For people: "from 1 to 64", "above 0, at most 1000"."""
        if self.above is not None:
            return f"above {_text(self.above)}, at most {_text(self.most)}"
        return f"from {_text(self.least)} to {_text(self.most)}"


def _text(number: float | None) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
