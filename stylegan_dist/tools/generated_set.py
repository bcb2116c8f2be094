"""A labelled shard set of generated images, to train classifiers with beside real ones (docs/augmentation-for-classifiers.md).

Sample j of class c is a function of (weights, seed, c, j, psi), however many are drawn of any class.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.kinds.image import Image, ImageOptions
from stylegan_dist.latents.pictures import save_picture
from stylegan_dist.latents.trained import Trained
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.networks.generator import Sampling
from stylegan_dist.records import shorten

GENERATED_BY = "generated_by"  # in `packed_with`
LABEL_FILE, PLAN_FILE = "dataset.json", ".plan.json"
MOST = 10_000_000              # samples of a set
PURPOSE = "augment_dataset"
_TOGETHER = 16                 # samples computed at once, always of the same numbers: their last bits depend on each other


@dataclass(frozen=True)
class Drawing:
    """What is drawn; it stands in the index of the set.

    Attributes:
        checkpoint: digest of the generator's checkpoint.
        nimg: images that it was trained on.
        counts: samples of each class.
        psi: truncation.
    """

    checkpoint: str
    nimg: int
    counts: list[int]
    seed: int
    psi: float


def counts_of(trained: Trained, per_class: int | None, listed: str | None, balance: DatasetIndex | None) -> list[int]:
    """Samples of each class, as one of the three says.

    Args:
        per_class: so many of each.
        listed: for example "3=100,7=50".
        balance: as many as each class of this set lacks to have as many as its largest.
    Raises:
        InputError: the generator has no classes; a class that it does not have; nothing to draw.
    """
    classes = trained.shape.num_classes
    if not classes:
        raise InputError(f"{trained.run_dir} was trained without labels, so that what it makes has none: train on labelled "
                         "data (stylegan-dist pack --labels folders, or stylegan-dist label)")
    counts = [per_class or 0] * classes
    if balance is not None:
        if not balance.class_counts or len(balance.class_counts) != classes:
            raise InputError(f"--balance: the set has {len(balance.class_counts or [])} classes, and {trained.run_dir} has "
                             f"{classes}: give the set that the run was trained on")
        counts = [max(balance.class_counts) - count for count in balance.class_counts]
    for part in listed.split(",") if listed else []:
        name, equals, number = part.partition("=")
        if not (equals and name.strip().isdecimal() and number.strip().isdecimal() and max(len(name), len(number)) < 10):
            raise InputError(f"--counts {shorten(part)}: write class=samples, for example 3=100,7=50")
        trained.check_class(int(name), "--counts: class")
        counts[int(name)] = int(number)
    if not 0 < sum(counts) <= MOST:
        raise InputError(f"that would be {sum(counts)} samples: 1 to {MOST} make a set")
    return counts


def draw_set(trained: Trained, out: Path, drawing: Drawing, names: Sequence[str] | None, encoding: str,
             report: Callable[[int], None]) -> DatasetIndex:
    """Draw and pack a set; the same call continues one that was interrupted.

    Args:
        names: of the classes; None: their numbers.
        encoding: of the images, as of `pack`.
        report: takes the number of samples drawn since the last call.
    Raises:
        InputError: what the run makes are no images, `out` is something else, or cannot be written.
    """
    if not isinstance(trained.kind, Image):
        raise InputError(f"{trained.run_dir} does not make images; only sets of images are drawn")
    work = out.with_name(f".{out.name}.drawn")
    plan = json.dumps({**asdict(drawing), "encoding": encoding})
    try:
        _check_place(out, work, plan)
        work.mkdir(parents=True, exist_ok=True)
        write_whole(work / PLAN_FILE, plan)
        labels = [pair for label in range(len(drawing.counts)) for pair in _draw_class(trained, drawing, label, work, report)]
        write_whole(work / LABEL_FILE, json.dumps({"labels": labels}))
        packing = ImageOptions(resolution=trained.shape.resolution, channels=trained.shape.channels, encoding=encoding)
        index = pack(work, out, PackOptions(packing, labels="json"))
        assert index is not None
        classes = list(names or map(str, range(len(drawing.counts))))
        index = replace(index, classes=classes, class_counts=drawing.counts,
                        packed_with={**index.packed_with, GENERATED_BY: asdict(drawing)})
        index.save(out)
        shutil.rmtree(work)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}; make room, and repeat the command") from None
    return index


def _check_place(out: Path, work: Path, plan: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if any(out.iterdir()) and not work.exists():
            raise InputError(f"{out} is not empty: choose another OUT")
    with contextlib.suppress(FileNotFoundError):
        if (work / PLAN_FILE).read_text() != plan:
            raise InputError(f"{work} holds images of another command for {out}: repeat that one, or remove the folder")


def _draw_class(trained: Trained, drawing: Drawing, label: int, work: Path,
                report: Callable[[int], None]) -> list[tuple[str, int]]:
    """Write the pictures of a class that are not there yet; returns (name, class) of all."""
    count, classes = drawing.counts[label], len(drawing.counts)
    names = [f"{label:05d}-{number:08d}.png" for number in range(count)]
    for start in range(0, count, _TOGETHER):
        group = names[start:start + _TOGETHER]
        if not all((work / name).exists() for name in group):
            index = torch.arange(start, start + _TOGETHER, device=trained.device) * classes + label
            labels = torch.full_like(index, label)
            with torch.no_grad():
                drawn = trained.generator.sample(drawing.seed, PURPOSE, index, labels, Sampling(drawing.psi))
            for name, pixels in zip(group, to_uint8(drawn.cpu()), strict=False):
                save_picture(work / name, pixels)
        report(len(group))
    return [(name, label) for name in names]
