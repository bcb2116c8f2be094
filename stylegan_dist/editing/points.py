"""Points of W+ that edits begin with: those of seeds, or found by `project`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.latents.saved import load_latents
from stylegan_dist.latents.trained import Trained


@dataclass(frozen=True)
class Point:
    """A sample before it is drawn.

    Attributes:
        name: for captions and file names.
        ws: float32 [num_ws, w_dim].
        maps: noise maps [1, 1, H, W]; none for the fixed ones.
    """

    name: str
    ws: Tensor
    label: int | None = None
    maps: list[Tensor] = field(default_factory=list)

    def at(self, ws: Tensor) -> Point:
        """The same with other ws."""
        return replace(self, ws=ws)


def require_w(trained: Trained) -> None:
    """Raise InputError for a generator without W."""
    if not trained.generator.num_ws:
        raise InputError(f"{trained.run_dir} has a generator without a mapping network: there is no W to edit in")


def points_of_seeds(trained: Trained, seeds: Sequence[int], label: int | None, truncation: float) -> list[Point]:
    """Those that `generate` draws; without a class, seed n has class n mod classes.

    Raises:
        InputError: no such class.
    """
    trained.check_class(label)
    classes, generator, index = trained.shape.num_classes, trained.generator, torch.zeros(1, dtype=torch.int64)
    points = []
    for seed in seeds:
        one = None if not classes else seed % classes if label is None else label
        labels = None if one is None else torch.tensor([one], device=trained.device)
        with torch.no_grad():
            w = generator.latents(seed, "generate", index.to(trained.device), labels, truncation)[0]
        points.append(Point(f"seed {seed}", w.expand(generator.num_ws, -1), one))
    return points


def points_of_files(trained: Trained, paths: Sequence[str]) -> list[Point]:
    """Those in files of `project`.

    Raises:
        InputError: a file is missing, damaged, or of another run.
    """
    points = []
    for path in paths:
        saved = load_latents(path)
        saved.check(trained)
        say_where_from(trained, path, saved.facts.get("checkpoint"))
        ws = saved.latents.to(trained.device)
        if ws.ndim == 1:
            ws = ws.expand(trained.generator.num_ws, -1)
        name = path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")
        points.append(Point(name, ws, saved.facts.get("class"), [one[None, None].to(trained.device) for one in saved.maps]))
    return points


def say_where_from(trained: Trained, path: str, checkpoint: object) -> None:
    """Print a note where a file of latents or directions was made with another checkpoint.

    That may be meant, as with a blended generator. Of a stranger's, only shapes fit, and the pictures would not tell.
    """
    if isinstance(checkpoint, str) and checkpoint != trained.digest:
        print(f"note: {path} was made with another checkpoint than that of {trained.run_dir} at {trained.nimg} images: it "
              "means the same only where one comes from the other", file=sys.stderr)


@torch.no_grad()
def draw(trained: Trained, point: Point) -> Tensor:
    """The picture of a point, uint8 [C, R, R] on the CPU. Alone, because in a batch its last bits depend on the others."""
    labels = torch.tensor([point.label or 0], device=trained.device) if trained.shape.num_classes else None
    values = trained.generator.synthesize(point.ws[None], labels, point.maps or "const").cpu()
    return to_uint8(trained.kind.as_pictures(values)[0])
