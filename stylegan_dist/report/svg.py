"""A chart as SVG: text and lines, drawn without any script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from stylegan_dist.report.axes import Axis, axis_of, linear_ticks
from stylegan_dist.report.curves import COLOURS, Chart, Series, describe, drawable
from stylegan_dist.report.html import Html, element, joined
from stylegan_dist.report.reading import RunFiles
from stylegan_dist.report.thinning import Point
from stylegan_dist.report.values import kimg, number

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 34
MOST_MARKS = 200  # of a kind and a run
FAR = 4.0    # heights of the chart beyond which coordinates are not drawn


class Drawing:
    """A chart over 0 to `end` images.

    Args:
        name: of the element, unlike all others of the page.
        marks: restarts and roll-backs of each run.
    """

    def __init__(self, chart: Chart, name: str, end: float, runs: Sequence[RunFiles]):
        self.chart, self.name, self.end, self.runs = chart, name, end, runs
        self.axis: Axis = axis_of(chart)

    def x(self, nimg: float) -> float:
        return round(LEFT + nimg / self.end * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        place = min(max(self.axis.place(value), -FAR), FAR) if drawable(value) else 0.0
        return round(TOP + (1 - place) * (HEIGHT - TOP - BOTTOM), 1)

    def svg(self) -> Html:
        clip = element("clipPath", element("rect", x=LEFT, y=TOP - 4, width=WIDTH - LEFT - RIGHT + 6,
                                           height=HEIGHT - TOP - BOTTOM + 8), id=f"{self.name}-clip")
        words = f"{describe(self.chart)} {self._describe_marks()}".strip()
        inside = joined(*(self._marks(at, run) for at, run in enumerate(self.runs)), *map(self._floor, self.floors()),
                        *map(self._curve, self.chart.series))
        cursor = joined(element("line", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor"),
                        *(element("circle", cx=0, cy=-99, r=3.5, class_=f"at c{series.style % COLOURS}")
                          for series in self.chart.series))
        return element("svg", element("title", self.chart.title), clip, *self._grid(),
                       element("g", inside, clip_path=f"url(#{self.name}-clip)"), cursor,
                       viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=words, id=self.name)

    def data(self) -> dict[str, Any]:
        """What the script needs to move the cursor."""
        axis = self.axis
        return {
            "id": self.name, "low": axis.low, "high": axis.high, "log": axis.log,
            "series": [{"x": [nimg / 1000 for nimg, _ in series.points],
                        "y": [_short(value) for _, value in series.points]} for series in self.chart.series],
        }

    def _grid(self) -> Iterator[Html]:
        for value in self.axis.ticks():
            y = self.y(value)
            yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
            yield element("text", number(value, 3), x=LEFT - 6, y=y + 4, text_anchor="end")
        for at in linear_ticks(0, self.end / 1000, 4):
            x = self.x(at * 1000)
            yield element("line", x1=x, x2=x, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="tick")
            yield element("text", number(at, 6), x=x, y=HEIGHT - BOTTOM + 16, text_anchor="end" if x > WIDTH - 30 else "middle")
        yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="tick")
        yield element("text", "kimg", x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end", class_="soft")
        if self.axis.log:
            yield element("text", "log scale", x=LEFT, y=HEIGHT - 3, class_="soft")

    def _marks(self, at: int, run: RunFiles) -> Html:
        """Restarts and roll-backs: across the whole chart for one run, short ones in its colour for several."""
        alone = len(self.runs) == 1
        style = "" if alone else f" c{at % COLOURS}"
        bottom = HEIGHT - BOTTOM if alone else TOP + 10
        parts = []
        for back in run.rollbacks[-MOST_MARKS:]:
            low, high = sorted((self.x(min(back.to, self.end)), self.x(min(back.at, self.end))))
            if alone:
                width = round(max(high - low, 1), 1)
                parts.append(element("rect", x=low, y=TOP, width=width, height=bottom - TOP, class_="back"))
            parts.append(element("path", d=f"M{high} {bottom}V{TOP}l-5 4m5 -4l5 4", class_="rollback" + style))
        for restart in run.restarts[-MOST_MARKS:]:
            x = self.x(min(restart.nimg, self.end))
            parts.append(element("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="restart" + style))
        return joined(*parts)

    def _describe_marks(self) -> str:
        parts = []
        for run in self.runs:
            name = "" if len(self.runs) == 1 else f"{run.name}: "
            if run.restarts:
                parts.append(f"{name}restarts at " + ", ".join(kimg(one.nimg) for one in run.restarts[:10]) + " kimg")
            if run.rollbacks:
                parts.append(f"{name}roll-backs at " + ", ".join(kimg(one.at) for one in run.rollbacks[:10]) + " kimg")
        return "; ".join(parts) + "." if parts else ""

    def floors(self) -> list[float]:
        floors = {series.floor for series in self.chart.series if series.floor is not None}
        return sorted(floor for floor in floors if not self.axis.log or floor > 0)

    def _floor(self, value: float) -> Html:
        return element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(value), y2=self.y(value), class_="floor")

    def _curve(self, series: Series) -> Html:
        colour = f"c{series.style % COLOURS}"
        style = f"{colour} d{series.style // COLOURS % 4}"
        if series.trend:  # the values themselves are faint then
            return joined(element("path", d=self._path(series.points), class_=f"curve raw {colour}"),
                          element("path", d=self._path(series.trend), class_=f"curve {style}"))
        parts = [element("path", d=self._path(series.points), class_=f"curve {style}")]
        if not series.dots:
            return joined(*parts)
        for (nimg, value), error in zip(series.points, series.errors or [None] * len(series.points), strict=True):
            if not drawable(value):
                continue
            x, y = self.x(nimg), self.y(value)
            if error:
                top, bottom = self.y(value + error), self.y(value - error)
                bar = f"M{x} {bottom}V{top}M{x - 3:.1f} {top}h6M{x - 3:.1f} {bottom}h6"
                parts.append(element("path", d=bar, class_=f"error {colour}"))
            if nimg in series.stars:
                parts.append(element("path", d=_star(x, y, 7), class_=f"star {colour}"))
            else:
                parts.append(element("circle", cx=x, cy=y, r=2.6, class_=f"dot {colour}"))
        return joined(*parts)

    def _path(self, points: Sequence[Point]) -> str:
        steps, drawing = [], False
        for nimg, value in points:
            if drawable(value):
                steps.append(f"{'L' if drawing else 'M'}{self.x(nimg):g} {self.y(value):g}{'' if drawing else 'h0'}")
            drawing = drawable(value)
        return "".join(steps)


def _star(x: float, y: float, radius: float) -> str:
    """A five-pointed star."""
    points = []
    for i in range(10):
        r, angle = (radius, 0.4 * radius)[i % 2], math.pi * i / 5
        points.append(f"{x + r * math.sin(angle):.1f} {y - r * math.cos(angle):.1f}")
    return "M" + "L".join(points) + "Z"


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if drawable(value) else None
