"""The vertical axis of a chart: its range, its scale, its ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stylegan_dist.report.curves import Chart, drawable, finite

WIDE = 30.0      # ratio of positive values from which a logarithmic scale shows more
OUTLYING = 5.0   # a range this many times that of nearly all values is cut
ENOUGH = 50      # values of which the extreme ones can be told
EDGE = 0.005     # share of values at each end that may be cut


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`. `cut` values lie outside; the farthest of them is `farthest`."""

    low: float
    high: float
    log: bool
    cut: int = 0
    farthest: float = 0.0

    def place(self, value: float) -> float:
        """0 at the lower end, 1 at the upper; a value that a logarithmic axis has not is far below."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return -1.0
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
            inside: list[float] = []
            for steps in ((1,), (1, 3), (1, 2, 5)):
                inside = [step * 10.0**decade for decade in decades for step in steps
                          if self.low <= step * 10.0**decade <= self.high]
                if len(inside) >= 3:
                    return inside[::-(-len(inside) // 6)]
        return linear_ticks(self.low, self.high)


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in a range, at most some `most`."""
    step = (high - low) / most
    if not 0 < step < math.inf:
        return [low]
    unit = 10.0 ** math.floor(math.log10(step))
    if unit == 0:
        return [low]
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= step * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)] or [low]


def axis_of(chart: Chart) -> Axis:
    values = [value for series in chart.series for value in finite(series)]
    for series in chart.series:
        if series.errors:
            for (_, value), error in zip(series.points, series.errors, strict=True):
                if error and drawable(value):
                    values += filter(drawable, (value - error, value + error))
    plain = [value for series in chart.series for value in finite(series)]
    if not plain:
        return Axis(0.0, 1.0, False)
    positive = min(plain) > 0
    # Zeros, such as those before the first penalty, do not keep a scale from being logarithmic where nearly all is positive.
    if chart.scale == "auto" and not positive and min(plain) == 0 and plain.count(0) <= 0.1 * len(plain):
        plain = [value for value in plain if value > 0]
        positive = bool(plain)
    log = positive and (chart.scale == "log" or (chart.scale == "auto" and max(plain) / min(plain) > WIDE))
    floors = [series.floor for series in chart.series if series.floor is not None and drawable(series.floor)]
    if log:
        values = [value for value in values if value >= min(plain) / 2]
        low, high = min(values + [floor for floor in floors if floor > 0]), max(values + floors)
        room = max((high / low) ** 0.06, 1.03)
        return Axis(low / room, high * room, True)
    low, high = min(values + floors), max(values + floors)
    cut, farthest = 0, 0.0
    inner = _range_of_nearly_all(chart)
    if inner is not None and high - low > OUTLYING * (inner[1] - inner[0]):
        margin = 0.25 * (inner[1] - inner[0])
        low, high = max(low, inner[0] - margin), min(high, inner[1] + margin)
        outside = [value for value in plain if not low <= value <= high]
        cut, farthest = len(outside), max(outside, key=abs, default=0.0)
    if chart.from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    room = 0.05 * (high - low)
    return Axis(low if low == 0 and chart.from_zero else low - room, high + room, False, cut, farthest)


def _range_of_nearly_all(chart: Chart) -> tuple[float, float] | None:
    """The range without the few extreme values of each curve, or None where there are not enough values to tell."""
    ranges: list[Sequence[float]] = []
    for series in chart.series:
        values = sorted(finite(series))
        if len(values) < ENOUGH:
            return None
        edge = max(round(EDGE * len(values)), 1)
        ranges.append(values[edge:-edge])
    low, high = min(values[0] for values in ranges), max(values[-1] for values in ranges)
    return (low, high) if high > low else None
