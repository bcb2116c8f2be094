"""Which curves are shown, and what is in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stylegan_dist.report.evaluations import MOST_CHARACTERS, Evaluation, score_title
from stylegan_dist.report.foreign import shown
from stylegan_dist.report.reading import RunFiles
from stylegan_dist.report.thinning import Point, evenly, thin, trend
from stylegan_dist.report.values import kimg, number

MOST_POINTS = 1000     # of a curve
MOST_ALL_POINTS = 60_000
MOST_ALL_SCORES = 12_000
TREND_POINTS = 60      # of the course of a noisy curve
NOISY = 2 * TREND_POINTS  # points from which the course is drawn, too
MOST_SERIES = 16       # of a chart
COLOURS = 4            # of series, then dashes
MOST_SCORES = 24       # charts of scores
SMALLEST, LARGEST = 1e-100, 1e100
SHOWN_ANYWAY = "schedule/augment.p"  # as augment/p
Scale = Literal["linear", "log", "auto"]


@dataclass(frozen=True)
class Panel:
    """A chart of metrics.

    Attributes:
        names: metric -> its label; a name that ends in "*" is every metric that begins so.
        scale: "auto" is logarithmic where the values are positive and span more than a factor of 30.
        from_zero: whether the axis has 0 on it.
        quiet: leave it out where all is 0.
        about: what a person should know of it.
        level: the setting at which a line is drawn, if p is controlled.
    """

    title: str
    names: dict[str, str]
    scale: Scale = "linear"
    unit: str = ""
    from_zero: bool = False
    quiet: bool = False
    about: str = ""
    level: str = ""


PANELS = (
    Panel("Losses", {"loss/g_main": "generator", "loss/d_main": "discriminator"}),
    Panel("Mean logits", {"logits/real": "real", "logits/fake": "generated", "logits/held_out": "held out"},
          about="On opposite sides of zero and close to it: healthy. A growing gap: the discriminator wins."),
    Panel("R1 penalty", {"loss/r1": "R1", "loss/r2": "R2"}, "auto", quiet=True),
    Panel("Path length", {"path_length/mean": "mean", "path_length/target": "target"}, "auto", quiet=True),
    Panel("Path length penalty", {"loss/path_length": "penalty"}, "auto", quiet=True),
    Panel("Augmentation", {"augment/p": "probability"}, quiet=True, from_zero=True,
          about="Of each transform. It follows how well the discriminator knows real images, unless it is fixed."),
    Panel("What augmentation follows", {"augment/r_t": "r_t", "augment/r_v": "r_v"}, level="augment.target",
          about="r_t: mean sign of the logits of real images. r_v: how far held-out images are from them, on the way to "
                "generated ones. Above its target the probability rises."),
    Panel("Learning rates", {"schedule/optim.g.lr": "generator", "schedule/optim.d.lr": "discriminator"}, "auto",
          about="Scheduled, before corrections."),
    Panel("Decay rates of Adam", {f"schedule/optim.{name[0]}.betas[{i}]": f"{name}, {moment} moment"
                                  for name in ("generator", "discriminator") for i, moment in enumerate(("first", "second"))},
          about="Scheduled, before corrections."),
    Panel("Weights of the penalties", {"schedule/loss.r1_gamma": "R1", "schedule/loss.r2_gamma": "R2"}, "auto",
          about="Scheduled."),
    Panel("Half-life of the average", {"schedule/ema.half_life_kimg": "half-life"}, unit="kimg", from_zero=True,
          about="Scheduled."),
    Panel("Other schedules", {"schedule/*": ""}, "auto"),
    Panel("Gradient norms", {"grad_norm/g": "generator", "grad_norm/d": "discriminator", "grad_norm/*": ""}, "auto"),
    Panel("Replaced gradient values", {"grad_nonfinite/*": ""}, quiet=True, from_zero=True,
          about="Values that were not finite. A few in fp16 do no harm."),
    Panel("Throughput", {"time/img_per_sec": "all ranks"}, unit="images per second", from_zero=True),
    Panel("Waiting for data", {"time/data_wait": "share of the time"}, unit="%", from_zero=True,
          about="More than a few percent: raise data.workers."),
    Panel("Peak memory", {"memory/peak_gib": "of rank 0"}, unit="GiB", from_zero=True),
)


@dataclass
class Series:
    """A curve.

    Attributes:
        points: (images seen, value), in order.
        errors: standard error of each point; None where it is not known.
        run: number of the run.
        style: number of its colour and dashes in the chart.
        floor: of a score, what real images get; of a metric, its target.
        stars: images seen at the best one.
        dots: whether each point is marked.
        trend: the course of a noisy curve; empty for others.
    """

    label: str
    points: list[Point]
    run: int
    style: int
    errors: list[float | None] | None = None
    floor: float | None = None
    stars: frozenset[int] = frozenset()
    dots: bool = False
    trend: list[Point] = field(default_factory=list)


@dataclass
class Chart:
    title: str
    series: list[Series]
    scale: Scale = "linear"
    unit: str = ""
    from_zero: bool = False
    about: list[str] = field(default_factory=list)


def score_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """One for each score and network; a curve for each run, number of images (others are not comparable) and seed of these."""
    keys = {(name, one.network): score.lower_is_better
            for run in runs for one in run.evaluations for name, score in one.scores.items()}
    charts = []
    for (name, network), lower in list(keys.items())[:MOST_SCORES]:
        chart = Chart(score_title(name, network), [], "log" if lower else "linear",
                      about=["Lower is better." if lower else "Higher is better."])
        for at, run in enumerate(runs):
            rows = [one for one in run.evaluations if one.network == network and name in one.scores]
            kinds = sorted({(one.count, one.seed, one.data) for one in rows})
            sets = list(dict.fromkeys(data for _, _, data in kinds))
            for kind, (count, seed, data) in enumerate(kinds):
                if len(chart.series) < MOST_SERIES:
                    here = [one for one in rows if (one.count, one.seed, one.data) == (count, seed, data)]
                    label = f"{count:,} images" if len(runs) == 1 else f"{run.name}, {count:,} images"
                    label += f", seed {seed}" if seed else ""
                    label += f", data {shown(data)[:8]}" if len(sets) > 1 else ""
                    style = kind if len(runs) == 1 else at + COLOURS * kind  # a run has one colour
                    chart.series.append(_scored(run, at, label, style, name, here))
        charts.append(chart)
    return charts


def _scored(run: RunFiles, at: int, label: str, style: int, name: str, rows: Sequence[Evaluation]) -> Series:
    scores = [one.scores[name] for one in rows]
    best = run.best.nimg if run.best and _is_metric(run.best.metric, name, rows[-1].network) else -1
    return Series(label, [(one.nimg, score.value) for one, score in zip(rows, scores, strict=True)], at, style,
                  [score.error for score in scores], scores[-1].floor, frozenset({best}), dots=True)


def _is_metric(metric: str, name: str, network: str) -> bool:
    """Whether best.json, which names a score with or without its network, means this one."""
    return metric == name or (name in metric and network in metric)


def metric_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Of one run: a chart for each panel. Of several: a chart for each metric, with a curve for each run."""
    charts = []
    for panel in PANELS:
        names = [*_names(panel, runs)]
        if len(runs) == 1:
            drawn = [(name, label, points) for name, label in names if (points := _points(runs[0], name, panel))]
            series = [Series(label, points, 0, style, floor=_level(runs[0], name, panel))
                      for style, (name, label, points) in enumerate(drawn)]
            charts.append(_chart(panel, panel.title, series))
        else:
            for name, label in names:
                series = [Series(run.name, points, at, at, floor=_level(run, name, panel)) for at, run in enumerate(runs)
                          if (points := _points(run, name, panel))]
                title = panel.title if len(names) == 1 else f"{panel.title}: {label}"
                charts.append(_chart(panel, title, series))
    return [chart for chart in charts if chart.series]


def _chart(panel: Panel, title: str, series: list[Series]) -> Chart:
    return Chart(title, series[:MOST_SERIES], panel.scale, panel.unit, panel.from_zero, [panel.about] if panel.about else [])


def _names(panel: Panel, runs: Sequence[RunFiles]) -> Iterator[tuple[str, str]]:
    """The metrics of a panel that any run has, with labels."""
    known = {name: None for run in runs for record in run.records for name in record.metrics}
    for name, label in panel.names.items():
        if not name.endswith("*"):
            if name in known:
                yield name, label
        else:
            begin = name[:-1]
            for other in [one for one in known if one.startswith(begin) and not _has_place(one)][:MOST_SERIES]:
                yield other, shown(other.removeprefix(begin).replace("_", " "))[:MOST_CHARACTERS]


def _has_place(name: str) -> bool:
    """Whether a metric is named in a panel."""
    return name == SHOWN_ANYWAY or any(name in panel.names for panel in PANELS)


def _level(run: RunFiles, name: str, panel: Panel) -> float | None:
    """Where a metric is to be: the target of p, of the statistic that controls it."""
    wanted = run.config.get(panel.level) if run.config.get("augment.p") == "ada" else None
    followed = name == f"augment/{run.config.get('augment.controller')}"
    return float(wanted) if followed and isinstance(wanted, (int, float)) and drawable(wanted) else None


def _points(run: RunFiles, name: str, panel: Panel) -> list[Point]:
    factor = 100 if panel.unit == "%" else 1
    points = [(record.nimg, record.metrics[name] * factor) for record in run.records if name in record.metrics]
    return [] if panel.quiet and not any(value for _, value in points) else points


def thin_all(charts: Sequence[Chart]) -> str:
    """Thin the curves of metrics where they have too many points, and find the course of noisy ones.

    Returns what was done, for people.
    """
    curves = [series for chart in charts for series in chart.series if not series.dots]
    most = max(min(MOST_POINTS, MOST_ALL_POINTS // max(len(curves), 1)), 50)
    scores = [series for chart in charts for series in chart.series if series.dots]
    for series in scores:
        _thin_scores(series, max(MOST_ALL_SCORES // len(scores), 20))
    longest = max((len(series.points) for series in curves), default=0)
    for series in curves:
        if len(series.points) >= NOISY:
            series.trend = trend(series.points, TREND_POINTS)
        series.points = thin(series.points, most)
    return (f"Curves have up to {longest:,} values. Some {most:,} of each are drawn: the lowest and the highest of each short "
            "stretch." if longest > most else "")


def _thin_scores(series: Series, most: int) -> None:
    """Evenly, but the best stays."""
    chosen = {*evenly(len(series.points), most), *(i for i, (nimg, _) in enumerate(series.points) if nimg in series.stars)}
    series.points = [series.points[i] for i in sorted(chosen)]
    if series.errors:
        series.errors = [series.errors[i] for i in sorted(chosen)]


def spread(charts: Sequence[Chart], runs: Sequence[RunFiles]) -> float:
    """The end of the x axis of all charts, in images seen."""
    ends = [series.points[-1][0] for chart in charts for series in chart.series]
    return max([1, *ends, *(last for run in runs for last in list(run.grids)[-1:])])


def drawable(value: float) -> bool:
    """Whether a value has a place in a chart: it is finite, and of a size with which one can calculate."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


def finite(series: Series) -> list[float]:
    return [value for _, value in series.points if drawable(value)]


def describe(chart: Chart, show: Callable[[float], str] = number) -> str:
    """What a chart shows, for those who do not see it."""
    parts = []
    for series in chart.series:
        values = finite(series)
        if values:
            at, last = series.points[-1]
            parts.append(f"{series.label} from {show(min(values))} to {show(max(values))}, {show(last)} at {kimg(at)} kimg")
        else:
            parts.append(f"{series.label}: no finite value")
    return f"{chart.title}{f' in {chart.unit}' if chart.unit else ''}. " + "; ".join(parts) + "."
