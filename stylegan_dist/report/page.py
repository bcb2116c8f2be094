"""The page: what was read, drawn and encoded, put together within a number of bytes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stylegan_dist.errors import InputError
from stylegan_dist.files import replacing
from stylegan_dist.report import sections
from stylegan_dist.report.curves import PANELS, Chart, metric_charts, score_charts, spread, thin_all
from stylegan_dist.report.html import Html, element, joined, script_json
from stylegan_dist.report.pictures import Picture, Unreadable, encode_one, encode_series
from stylegan_dist.report.reading import SAMPLES_NAME, RunFiles, read_run
from stylegan_dist.report.sounds import encode_sounds
from stylegan_dist.report.svg import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Drawing
from stylegan_dist.report.values import kimg, number, when

REPORT_NAME = "report.html"
MOST_BYTES = 10_000_000
MOST_RUNS = 16
SOUNDS_SHARE = 0.2  # of the room, for sounds
OTHERS_SHARE = 0.3  # of the room for pictures, for those that are no sample grids
RESERVE = 1000      # bytes for each picture beside its own: its place in the data of the page

REALS = f"{SAMPLES_NAME}/reals.png"
# Of RUN/, with what each shows.
OTHERS = {
    REALS: "Real images of the data set, for comparison",
    "evaluation/truncation.png": "Truncation: the same latents in a row, from the average image to full variety and beyond",
    "evaluation/classes.png": "Classes: a row for each class, the same latents in each column",
    "evaluation/interpolation.png": "Interpolation: each row goes through three latents and back, in equal steps",
    "evaluation/neighbours.png": "Nearest neighbours: generated images on the left, by number, and the real images nearest to "
    "each with their distances. First those that are nearest to any, then the first ones that were drawn",
}

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: Path
    bytes: int
    notes: list[str]


def write_report(runs: Sequence[Path], out: Path, most: int = MOST_BYTES) -> Report:
    """Write the report of one or several runs.

    Raises:
        InputError: a folder is no run; too many runs or numbers; the file cannot be written.
    """
    if len(runs) > MOST_RUNS:
        raise InputError(f"a report of {len(runs)} runs would not be readable: give at most {MOST_RUNS}")
    found = [read_run(run) for run in runs]
    _name_apart(found)
    text = Page(found, most).text()
    content = text.encode("utf-8", "replace")
    if len(content) > most:
        raise InputError(f"the numbers alone would take {len(content) / 1e6:.0f} MB: give fewer runs at once")
    if out.is_dir():
        raise InputError(f"{out} is a folder: give the name of a file, such as {out / REPORT_NAME}")
    try:
        with replacing(out) as temporary, open(temporary, "wb") as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another place with --out") from None
    return Report(out, len(content), [note for run in found for note in run.notes])


def _name_apart(runs: Sequence[RunFiles]) -> None:
    """Give runs of the same name more of their paths, or numbers."""
    names = [run.name for run in runs]
    for i, run in enumerate(runs):
        if names.count(names[i]) > 1:
            run.name = os.path.join(run.path.resolve().parent.name, names[i])
    names = [run.name for run in runs]
    for i, run in enumerate(runs):
        if names.count(names[i]) > 1:
            run.name = f"{names[i]} ({names[:i + 1].count(names[i])})"


class Page:
    """The HTML of a report of at most `most` bytes."""

    def __init__(self, runs: Sequence[RunFiles], most: int):
        self.runs, self.most = runs, most
        self.alone = len(runs) == 1
        self.notes: list[str] = []
        scores, metrics = score_charts(runs), metric_charts(runs)
        self.notes.append(thin_all([*scores, *metrics]))
        self.end = spread([*scores, *metrics], runs)
        self.scores = [Drawing(chart, f"s{i}", self.end, runs) for i, chart in enumerate(scores)]
        self.metrics = [Drawing(chart, f"m{i}", self.end, runs) for i, chart in enumerate(metrics)]
        self.grids: list[dict[int, Picture]] = [{} for _ in runs]
        self.others: list[dict[str, Picture]] = [{} for _ in runs]
        self.sounds: list[dict[str, str]] = [{} for _ in runs]

    def text(self) -> str:
        room = self.most - len(self._html().encode("utf-8", "replace")) - 20_000
        self._encode(max(room, 0))
        return self._html()

    def _encode(self, room: int) -> None:
        heard = sum(bool(run.sounds) for run in self.runs)
        for i, run in enumerate(self.runs):
            if run.sounds:
                self.sounds[i] = encode_sounds(run, int(room * SOUNDS_SHARE / heard))
                room -= sum(map(len, self.sounds[i].values()))
        there = [(i, name) for i, run in enumerate(self.runs) for name in OTHERS if os.path.exists(run.path / name)]
        used = 0
        for i, name in there:
            try:
                picture = encode_one(self.runs[i].path / name, int(room * OTHERS_SHARE / len(there)))
            except Unreadable as error:
                self.runs[i].notes.append(f"{name} cannot be shown: {error}")
                continue
            if picture:
                self.others[i][name] = picture
                used += len(picture.uri) + RESERVE
        count = sum(len(run.grids) for run in self.runs)
        for i, run in enumerate(self.runs):
            files = list(run.grids.values())
            share = (room - used) * len(files) // max(count, 1)
            made = encode_series(files, share - RESERVE // 10 * len(files)) if files else None
            if made:
                seen = list(run.grids)
                self.grids[i] = {seen[at]: picture for at, picture in made.pictures.items()}
                run.notes += made.notes

    def _html(self) -> str:
        folder = Path(__file__).parent
        name = self.runs[0].name if self.alone else f"{len(self.runs)} runs"
        head = element(
            "head", element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="referrer", content="no-referrer"), element("meta", name="color-scheme", content="light dark"),
            element("link", rel="icon", href="data:,"), element("title", f"{name} \u2013 stylegan-dist report"),
            element("style", Html((folder / "page.css").read_text("utf-8"))),
        )
        script = Html((folder / "page.js").read_text("utf-8"))
        body = element("body", self._header(), self._main(), element("script", script_json(self._data()), id="data",
                                                                     type="application/json"), element("script", script))
        return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"

    def _header(self) -> Html:
        title = self.runs[0].name if self.alone else ", ".join(run.name for run in self.runs)
        path = str(self.runs[0].path.resolve()) if self.alone else f"{len(self.runs)} runs"
        return element("header", element("h1", title), element("p", f"{path}, as of {when(time.time())}", class_="soft"))

    def _main(self) -> Html:
        pictures = element("section", element("h2", "Samples"), self._pictures(), aria_label="Samples", class_="samples")
        slider = self._slider()
        if self.alone:
            run = self.runs[0]
            about = element("section", element("h2", "The run"), sections.fact_list(run))
            first = [slider, element("div", pictures, about, class_="hero"), *self._curves()]
        else:
            first = [element("section", element("h2", "What differs in their configurations"), sections.differences(self.runs)),
                     element("section", element("h2", "The runs"), sections.summary(self.runs)), slider, *self._curves(),
                     pictures]
        return element("main", *first, *self._rest())

    def _pictures(self) -> Html:
        """A viewer for the slider, which the script fills; and the first, the middle and the last grid for print."""
        if not any(self.grids):
            return element("p", "There are no sample grids yet.", class_="soft")
        views = [element("figure", class_=f"view c{i % COLOURS}", data_run=i) for i, grids in enumerate(self.grids) if grids]
        stills = []
        for i, grids in enumerate(self.grids):
            seen = sorted(grids)
            for at in dict.fromkeys([0, len(seen) // 2, len(seen) - 1] if seen else []):
                picture = grids[seen[at]]
                stills.append(element("figure", element("img", src=picture.uri, width=picture.width, height=picture.height,
                                                        alt=self._alt(i, seen[at]), id=f"still-{i}-{seen[at]}"),
                                      element("figcaption", self._alt(i, seen[at]))))
        return joined(element("div", *views, class_="views" if self.alone else "views many"),
                      element("div", *stills, class_="stills"))

    def _alt(self, run: int, nimg: int) -> str:
        return f"Samples {'' if self.alone else f'of {self.runs[run].name} '}at {kimg(nimg)} kimg"

    @property
    def steps(self) -> list[int]:
        return sorted({nimg for grids in self.grids for nimg in grids})

    def _slider(self) -> Html | None:
        steps = self.steps
        if not steps:
            return None
        last = len(steps) - 1
        best = next((run.best for run in self.runs if run.best), None)
        buttons = [element("button", "Play", type="button", id="play", aria_pressed="false")]
        if best and self.alone:
            buttons.append(element("button", "Best", type="button", id="best", data_nimg=best.nimg,
                                   title=sections.describe_best(best)))
        if any(REALS in others for others in self.others):
            buttons.append(element("button", "Real images", type="button", id="reals", aria_pressed="false"))
        buttons.append(element("button", "Full size", type="button", id="full", aria_pressed="false"))
        return element(
            "form", element("label", "Samples at", for_="slider"),
            element("input", type="range", id="slider", min=0, max=last, step=1, value=last, disabled=last == 0),
            element("output", f"{kimg(steps[-1])} kimg", for_="slider", id="now"), *buttons,
            class_="bar", aria_label="Which samples are shown")

    def _curves(self) -> list[Html]:
        parts = []
        for title, drawings in (("Scores", self.scores), ("Curves", self.metrics)):
            if drawings:
                tables = [sections.scores(run) for run in self.runs] if title == "Scores" else []
                parts.append(element("section", element("h2", title), self._key() if drawings is self.metrics else None,
                                     element("div", *map(self._figure, drawings), class_="charts"), *tables))
        return parts

    def _key(self) -> Html | None:
        """What the marks in the curves mean."""
        marks = []
        if any(run.restarts for run in self.runs):
            marks.append(_mark("restart", element("line", x1=12, x2=12, y1=0, y2=12, class_="restart")))
        if any(run.rollbacks for run in self.runs):
            marks.append(_mark("roll-back", element("path", d="M12 12V1l-5 4m5 -4l5 4", class_="rollback")))
        if any(series.trend for drawing in self.metrics for series in drawing.chart.series):
            marks.append(element("span", "bold: mean course, faint: all values"))
        return element("p", *marks, class_="key soft") if marks else None

    def _figure(self, drawing: Drawing) -> Html:
        chart: Chart = drawing.chart
        legend = []
        for i, series in enumerate(chart.series):
            last = next((value for _, value in reversed(series.points) if value == value), None)
            swatch = element("svg", element("line", x1=0, x2=24, y1=6, y2=6,
                                            class_=f"curve c{series.style % COLOURS} d{series.style // COLOURS % 4}"),
                             viewBox="0 0 24 12", aria_hidden="true")
            legend.append(element("li", swatch, element("span", series.label, class_="label"),
                                  element("b", number(last), data_value=f"{drawing.name}-{i}")))
        about = list(chart.about)
        targets = {series.floor for series in chart.series if series.floor is not None and not series.dots}
        floors = {series.floor for series in chart.series if series.floor is not None and series.dots}
        if targets:
            about.append(f"Dotted: the target, {', '.join(map(number, sorted(targets)))}.")
        if floors:
            about.append(f"{'Dotted: real' if drawing.floors() else 'Real'} images against other real images score "
                         f"{', '.join(map(number, sorted(floors)))}.")
        if any(series.stars & {nimg for nimg, _ in series.points} for series in chart.series):
            about.append("\u2605 is the best checkpoint.")
        if drawing.axis.cut:
            about.append(f"{drawing.axis.cut} values lie outside, as far as {number(drawing.axis.farthest)}.")
        title = f"{chart.title}, {chart.unit}" if chart.unit else chart.title
        return element("figure", element("h3", title), element("ul", *legend, class_="legend"), drawing.svg(),
                       element("figcaption", " ".join(about)), class_="chart")

    def _rest(self) -> list[Html]:
        parts = [self._sounds(), self._other_pictures()]
        for title, function in (("Faults survived", sections.faults), ("Configuration", sections.configuration)):
            made = [(run, function(run)) for run in self.runs]
            inside = [joined(None if self.alone else element("h3", run.name), text) for run, text in made if text]
            if inside:
                parts.append(element("section", element("h2", title), *inside))
        parts.append(element("section", element("h2", "Versions"), sections.versions(self.runs)))
        if any(run.records for run in self.runs):
            shown = [name for panel in PANELS for name in panel.names if not name.endswith("*")]
            parts.append(element("section", element("h2", "Numbers"), *(sections.numbers(run, shown) for run in self.runs)))
        told = list(sections.notes(self.runs, self.notes))
        if told:
            parts.append(element("section", element("h2", "About this report"), element("ul", *told)))
        return [part for part in parts if part]

    def _sounds(self) -> Html | None:
        """Samples to be heard."""
        figures = []
        for run, sounds in zip(self.runs, self.sounds, strict=True):
            for what, uri in sounds.items():
                text = what if self.alone else f"{run.name}: {what}"
                figures.append(element("figure", element("audio", src=uri, controls=True, preload="none", aria_label=text),
                                       element("figcaption", text)))
        if not figures:
            return None
        about = "The samples of the first row of a grid, one after the other."
        return element("section", element("h2", "Sounds"), element("p", about, class_="soft"),
                       element("div", *figures, class_="others"))

    def _other_pictures(self) -> Html | None:
        figures = []
        for i, others in enumerate(self.others):
            for name, picture in others.items():
                name_first = [] if self.alone else [self.runs[i].name]
                text = ". ".join(part for part in (*name_first, OTHERS[name], picture.about) if part)
                image = element("img", src=picture.uri, width=picture.width, height=picture.height, alt=text,
                                id=f"other-{i}-{list(OTHERS).index(name)}")
                figures.append(element("figure", image, element("figcaption", text)))
        if not figures:
            return None
        return element("section", element("h2", "More pictures"), element("div", *figures, class_="others"))

    def _data(self) -> dict:
        stills = {f"still-{i}-{nimg}" for i, grids in enumerate(self.grids) for seen in [sorted(grids)]
                  for nimg in ([seen[0], seen[len(seen) // 2], seen[-1]] if seen else [])}
        grids = []
        for i, shown in enumerate(self.grids):
            rows = []
            for nimg in sorted(shown):
                name, picture = f"still-{i}-{nimg}", shown[nimg]
                rows.append([nimg / 1000, kimg(nimg), name if name in stills else picture.uri, picture.width, picture.height])
            grids.append(rows)
        return {"end": self.end / 1000, "box": [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM],
                "steps": [[nimg / 1000, kimg(nimg)] for nimg in self.steps],
                "runs": [run.name for run in self.runs], "alone": self.alone, "grids": grids,
                "charts": [drawing.data() for drawing in (*self.scores, *self.metrics)]}


def _mark(text: str, drawing: Html) -> Html:
    return element("span", element("svg", drawing, viewBox="0 0 24 12", aria_hidden="true"), f" {text}")
