"""Sheets: pictures in rows and columns that show what an edit does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stylegan_dist.editing.directions import Directions
from stylegan_dist.editing.points import Point, draw
from stylegan_dist.latents.trained import Trained
from stylegan_dist.monitor.images import save_grid

Report = Callable[[], None]  # called after each picture
_CONTRAST = 4                # of difference pictures


@dataclass(frozen=True)
class Sheet:
    """Pictures uint8 [C, R, R] row by row, with a caption for each."""

    columns: int
    images: list[Tensor]
    captions: list[str]

    def save(self, path: Path) -> None:
        """Write a PNG file, whole or not at all. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_grid(path, torch.stack(self.images), self.columns, self.captions)


def _sheet(trained: Trained, rows: Sequence[Sequence[Point]], captions: Sequence[str], report: Report) -> Sheet:
    images = []
    for point in (point for row in rows for point in row):
        images.append(draw(trained, point))
        report()
    return Sheet(len(rows[0]), images, list(captions) + [""] * (len(images) - len(captions)))


def strengths_sheet(trained: Trained, points: Sequence[Point], directions: Directions, number: int, strengths: Sequence[float],
                    report: Report) -> Sheet:
    """A row for each point, moved along one direction by each strength."""
    rows = [[point.at(directions.move(point.ws[None], number, strength)[0]) for strength in strengths] for point in points]
    return _sheet(trained, rows, [f"{strength:+g}" for strength in strengths], report)


def directions_sheet(trained: Trained, point: Point, directions: Directions, strengths: Sequence[float],
                     report: Report) -> Sheet:
    """A row for each direction, of one point."""
    rows = [[point.at(directions.move(point.ws[None], number, strength)[0]) for strength in strengths]
            for number in range(len(directions.vectors))]
    captions = [f"{number}: {strength:+g}" for number in range(len(rows)) for strength in strengths]
    return _sheet(trained, rows, captions, report)


def truncation_sheet(trained: Trained, rows: Sequence[Sequence[Point]], psis: Sequence[float], report: Report) -> Sheet:
    """A row for each seed, a column for each psi."""
    return _sheet(trained, rows, [f"psi {psi:g}" for psi in psis], report)


def mixing_sheet(trained: Trained, rows: Sequence[Point], columns: Sequence[Point], layers: Sequence[int],
                 report: Report) -> Sheet:
    """Style mixing (Karras et al. 2019, section 3.1): the points of `rows` with the ws of `columns` in `layers`.

    The first row and column show the points themselves.
    """
    top, left = [draw(trained, point) for point in columns], [draw(trained, point) for point in rows]
    images = [torch.zeros_like(top[0]), *top]
    captions = ["", *(point.name for point in columns)]
    for one, picture in zip(rows, left, strict=True):
        images.append(picture)
        captions.append(one.name)
        for other in columns:
            ws = one.ws.clone()
            ws[list(layers)] = other.ws[list(layers)]
            images.append(draw(trained, one.at(ws)))
            captions.append("")
            report()
    return Sheet(len(columns) + 1, images, captions)


def layers_sheet(trained: Trained, points: Sequence[Point], report: Report) -> tuple[Sheet, Tensor]:
    """What each layer changes: point k takes the w of point k + 1 in one layer alone.

    Returns: a row for each layer, with the picture and the difference for each point; and the root mean squared difference
        for each layer and point, in grey levels, float64 [num_ws, points].
    """
    before = [draw(trained, point) for point in points]
    images, captions = [], []
    changes = torch.zeros(trained.generator.num_ws, len(points), dtype=torch.float64)
    for layer in range(trained.generator.num_ws):
        for k, point in enumerate(points):
            ws = point.ws.clone()
            ws[layer] = points[(k + 1) % len(points)].ws[layer]
            after = draw(trained, point.at(ws))
            difference = (after.int() - before[k].int()).abs()
            changes[layer, k] = difference.double().square().mean().sqrt()
            images += [after, (difference * _CONTRAST).clamp(max=255).to(torch.uint8)]
            captions += [f"layer {layer}", f"change {float(changes[layer, k]):.1f}"]
            report()
    return Sheet(2 * len(points), images, captions), changes
