"""Where searches start: mean latents of classes, and draws. The most promising start of each image is searched from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.latents.loss import Loss
from stylegan_dist.latents.search import Rows, Search, losses_of, search
from stylegan_dist.latents.trained import DRAWS, Trained

PURPOSE = "project"
TRIALS = 8             # starts of an image that are tried by a short search
TRIAL_SHARE = 0.1      # of the steps, for such a search
_LEAST_DRAWS = 500     # of one class among many
_TRUNCATION = 0.7      # of drawn starts: they shall be typical


class Starts(NamedTuple):
    """K places to start from."""

    latents: Tensor         # [K, ...]
    mean: Tensor            # [K, ...], of the start's class
    spread: Tensor          # [K]
    whitening: Tensor       # [K, D, D]
    labels: Tensor | None   # int64 [K]


def find_starts(trained: Trained, label: int | None, every: bool, drawn: int, seed: int) -> Starts:
    """Starts of all images.

    Args:
        label: their class; None: none in particular.
        every: the mean of each class instead.
        drawn: further starts that are drawn, of these classes in turn.
        seed: of the draws.
    Raises:
        InputError: there is no such class; a class must be given.
    """
    trained.check_class(label)
    classes = trained.shape.num_classes
    chosen: list[int | None] = list(range(classes)) if every and classes else [label]
    if chosen == [None] and classes and not trained.generator.truncates:
        raise InputError(f"the latents of {trained.run_dir} say nothing of the class: give --class K or --class all")
    draws = max(_LEAST_DRAWS, DRAWS // len(chosen))
    populations = [trained.population(one, f"{PURPOSE}.population", draws) for one in chosen]
    mean, spread, whitening = (torch.stack(list(values)) for values in zip(*populations, strict=True))
    labels = None
    if classes:  # without a class in particular: places in W, of which the label says nothing any more
        labels = torch.tensor([one or 0 for one in chosen], device=trained.device)
    latents = mean
    if drawn:
        index = torch.arange(drawn, device=trained.device)
        rows = index % len(chosen)
        drawn_labels = None
        if classes:
            drawn_labels = index % classes if chosen == [None] else torch.tensor(chosen, device=trained.device)[rows]
        with torch.no_grad():
            points = trained.generator.latents(seed, f"{PURPOSE}.start", index, drawn_labels)
        latents = torch.cat([latents, mean[rows].lerp(points, _TRUNCATION)])
        mean, spread, whitening = (torch.cat([values, values[rows]]) for values in (mean, spread, whitening))
        labels = None if labels is None else torch.cat([labels, labels[rows]])
    return Starts(latents, mean, spread, whitening, labels)


def begin(how: Search, starts: Starts, numbers: Tensor, choice: Tensor) -> Rows:
    """Rows at chosen starts. Their own noise maps begin as the fixed ones.

    Args:
        numbers: int64 [N], of the images.
        choice: int64 [N], of the starts.
    """
    maps = [values.repeat(len(numbers), 1, 1, 1) for values in how.trained.generator.noise_maps()] if how.with_maps else []
    return Rows(starts.latents[choice], starts.mean[choice], starts.spread[choice], starts.whitening[choice],
                None if starts.labels is None else starts.labels[choice], numbers, maps)


def choose(how: Search, loss: Loss, starts: Starts, numbers: Tensor, steps: int) -> Tensor:
    """The best start of each image: int64 [N].

    The starts whose own pictures are nearest go into a short search. The least loss after it decides.

    Args:
        loss: of the N images.
        steps: of a whole search.
    """
    count, images, device = len(starts.latents), len(numbers), how.trained.device
    if count == 1:
        return torch.zeros(images, dtype=torch.int64, device=device)
    every = torch.arange(count, device=device)

    def tried(choice: Tensor, work: Callable[[Loss, Rows], Rows]) -> Tensor:
        """Losses [N, K] of choices int64 [N, K] after some work."""
        image = torch.arange(images, device=device)[:, None].expand_as(choice).flatten()
        found = []
        for first in range(0, len(image), how.batch):
            part = slice(first, first + how.batch)
            own = loss.rows(image[part])
            rows = work(own, begin(how, starts, numbers[image[part]], choice.flatten()[part]))
            found.append(losses_of(how.trained, own, rows))
        return torch.cat(found).view(choice.shape)

    choice = every.expand(images, -1)
    if count > TRIALS:
        nearest = tried(choice, lambda _, rows: rows).topk(TRIALS, largest=False).indices
        choice = choice.gather(1, nearest)
    short = max(1, round(steps * TRIAL_SHARE))
    losses = tried(choice, lambda own, rows: search(how, own, rows, short, PURPOSE))
    return choice.gather(1, losses.argmin(1, keepdim=True))[:, 0]


