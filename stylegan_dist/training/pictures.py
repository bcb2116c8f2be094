"""Pictures that tell what a generator has learned: functions of the generator, the seed and the kind of samples alone.

    truncation      the same latents in a row, pulled towards the mean of W by psi: on the left the mean, on the right variety;
                    of generators that truncate
    classes         a row for each class, the same latents in each column
    interpolation   in a row a closed line through latents, with fixed noise: straight in W, great circles where there is no W

All draws are by address, so that a picture shows the same latents all the time. How many images a picture has does not depend
on the configuration, and its images are made smaller: it costs the same at any resolution, apart from the generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from stylegan_dist.kinds import Kind
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.networks.generator import Generator, great_circle

PSIS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
TRUNCATION_ROWS = 8
CLASS_COLUMNS = 8
MOST_CLASSES = 20     # with a row of their own
LOOPS = 6             # of the interpolation
CLIP_COLUMNS = 3
CORNERS = 3           # points of W that a loop goes through
STEPS = 24            # from one to the next
SHOWN_STEPS = 4       # of these, in the picture that does not move
LARGEST_SIDE = 256    # of an image of the truncation; pixels
SMALL_SIDE = 128      # of the others

LOOP_IMAGES = LOOPS * CORNERS * STEPS


class Sheet(NamedTuple):
    """Images for a grid: uint8 [N, C, S, S] on the CPU, how many are in a row, and a line above each."""

    images: Tensor
    columns: int
    captions: list[str]


@torch.no_grad()
def truncation(generator: Generator, kind: Kind, seed: int, batch: int) -> Sheet:
    """Columns of rising psi; classes in the rows where there are any.

    Args:
        generator: on any device; others as well.
        batch: images that are computed at once; another number gives the same images up to rounding.
    """
    index, labels = _numbers(generator, TRUNCATION_ROWS), _spread(generator, TRUNCATION_ROWS)
    latents = torch.stack([generator.latents(seed, "pictures.truncation", index, labels, psi) for psi in PSIS], 1)
    images = _synthesize(generator, kind, latents, labels, batch, LARGEST_SIDE)
    return Sheet(images.flatten(0, 1), len(PSIS), _above_first_row([f"psi {psi:g}" for psi in PSIS], TRUNCATION_ROWS))


@torch.no_grad()
def trial(generator: Generator, kind: Kind, seed: int, batch: int) -> int:
    """Draw a few images for nobody, which tells how long others would take; returns how many.

    Args:
        generator, kind, seed, batch: as of `truncation`.
    """
    index, labels = _numbers(generator, batch), _spread(generator, batch)
    latents = generator.latents(seed, "pictures.trial", index, labels)
    _synthesize(generator, kind, latents[:, None], labels, batch, SMALL_SIDE)
    return batch


@torch.no_grad()
def classes(generator: Generator, kind: Kind, seed: int, batch: int, names: Sequence[str] = ()) -> Sheet:
    """A row for each class, or for some evenly chosen ones. Only of a conditional generator.

    Args:
        generator, kind, seed, batch: as of `truncation`.
        names: of all classes; by default they are numbered.
    """
    rows = class_rows(generator)
    labels = _spread(generator, rows)
    assert labels is not None, "the generator is conditional"
    index = _numbers(generator, CLASS_COLUMNS)
    latents = torch.stack([generator.latents(seed, "pictures.classes", index, label.expand(CLASS_COLUMNS)) for label in labels])
    images = _synthesize(generator, kind, latents, labels, batch, SMALL_SIDE)
    captions = []
    for label in labels.tolist():
        text = f"class {label}" + (f": {names[label]}" if names and names[label] != str(label) else "")
        captions += [text, *[""] * (CLASS_COLUMNS - 1)]
    return Sheet(images.flatten(0, 1), CLASS_COLUMNS, captions)


def class_rows(generator: Generator) -> int:
    """How many rows `classes` has; 0 for an unconditional generator."""
    return min(generator.num_classes, MOST_CLASSES)


@torch.no_grad()
def interpolation(generator: Generator, kind: Kind, seed: int, batch: int) -> Tensor:
    """The frames of closed loops through latents, uint8 [CORNERS * STEPS, LOOPS, C, S, S]; the last one comes before the first.

    Each loop has its own latents, and its own class where there are any. Arguments: as of `truncation`.
    """
    labels = _spread(generator, LOOPS)
    index = _numbers(generator, LOOPS * CORNERS)
    corners = generator.latents(seed, "pictures.interpolation", index,
                                None if labels is None else labels.repeat_interleave(CORNERS)).unflatten(0, (LOOPS, CORNERS))
    frames = []
    for corner in range(CORNERS):
        one, other = corners[:, corner], corners[:, (corner + 1) % CORNERS]
        # Latents of generators without a mean are normally distributed.
        way = one.lerp if generator.truncates else partial(great_circle, one)
        frames += [way(other, step / STEPS) for step in range(STEPS)]
    return _synthesize(generator, kind, torch.stack(frames, 1), labels, batch, SMALL_SIDE).transpose(0, 1)


def strip(frames: Tensor) -> Sheet:
    """Some of the frames of `interpolation` in equal steps, a row for each loop."""
    some = frames[::STEPS // SHOWN_STEPS]
    return Sheet(some.transpose(0, 1).flatten(0, 1), len(some), [])


def small_pictures(kind: Kind, values: Tensor, side: int) -> Tensor:
    """Values [N, C, S, S] in the network's range as pictures: uint8 [N, 1, 3 or 4, ...] on the CPU.

    Args:
        side: pixels of their shorter side, at most; those of lines of text are long.
    """
    images = kind.as_pictures(values.float())
    factor = -(-min(images.shape[2:]) // side)
    return to_uint8(avg_pool2d(images, factor) if factor > 1 else images).cpu()


def _numbers(generator: Generator, count: int) -> Tensor:
    return torch.arange(count, device=next(generator.parameters()).device)


def _spread(generator: Generator, rows: int) -> Tensor | None:
    """The class of each row: evenly chosen ones, or all of them in turn where there are fewer; None where there are none."""
    if not generator.num_classes:
        return None
    numbers = _numbers(generator, rows)
    return numbers * generator.num_classes // rows if generator.num_classes >= rows else numbers % generator.num_classes


def _above_first_row(texts: list[str], rows: int) -> list[str]:
    return texts + [""] * len(texts) * (rows - 1)


def _synthesize(generator: Generator, kind: Kind, latents: Tensor, labels: Tensor | None, batch: int, side: int) -> Tensor:
    """Pictures uint8 [rows, columns, C, S, S] on the CPU, of at most `side` pixels.

    Args:
        latents: [rows, columns, ...].
        labels: of the rows.
    """
    rows, columns = latents.shape[:2]
    flat = latents.flatten(0, 1)
    of_each = None if labels is None else labels.repeat_interleave(columns)
    parts = []
    for start in range(0, len(flat), batch):
        part = slice(start, start + batch)
        values = generator.synthesize(flat[part], None if of_each is None else of_each[part])
        parts.append(small_pictures(kind, values, side))
    return torch.cat(parts).unflatten(0, (rows, columns))
