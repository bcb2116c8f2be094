"""Where completions start: at the mean latent of drawn samples, weighted by how well they agree with what is known of an image.

Under the generator's own distribution this estimates E[w | known pixels], by importance sampling with Gaussian differences of
known pixels. The weights of an image are as flat as if `EFFECTIVE` samples counted alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from stylegan_dist.latents.starts import PURPOSE, Starts
from stylegan_dist.latents.trained import Trained

DRAWN = 2000     # samples that are compared
EFFECTIVE = 16   # of them that count
_HALVINGS = 60   # of the interval of log temperatures
_COLDEST, _HOTTEST = -40.0, 20.0


@torch.no_grad()
def agreeing(trained: Trained, parts: Sequence[Callable[[], Tensor]], missing: Tensor, label: int | None, seed: int,
             numbers: Iterable[Tensor]) -> Starts:
    """One start for each image.

    Args:
        trained: has W, where a mean of latents is a latent.
        parts: give images [n, C, R, R] in the range of networks, some of them each.
        missing: bool [1, 1, R, R].
        label: class of the samples; None: all classes in turn.
        numbers: int64 [b] each, on the device: of the samples that are compared, as many as are computed at once.
    Returns: starts, as of `find_starts`; without a class, the class of a start is that of the samples which count most.
    """
    classes = trained.shape.num_classes
    population = trained.population(label, f"{PURPOSE}.population")
    known = ~missing[0, 0]
    latents, kinds, apart = [], [], []
    for index in numbers:
        labels = None
        if classes:
            labels = index % classes if label is None else torch.full_like(index, label)
            kinds.append(labels)
        latents.append(trained.generator.latents(seed, f"{PURPOSE}.start", index, labels))
        pictures = trained.generator.synthesize(latents[-1], labels).clamp(-1, 1)[:, :, known].flatten(1)
        apart.append(torch.cat([torch.cdist(values()[:, :, known].flatten(1), pictures) for values in parts]).double().square())
    drawn = torch.cat(latents)
    weights = shares(torch.cat(apart, 1), min(EFFECTIVE, len(drawn)))
    means = (weights @ drawn.double().flatten(1)).float().view(-1, *drawn.shape[1:])
    labels = None
    if classes:
        labels = torch.stack([weights[:, torch.cat(kinds) == one].sum(1) for one in range(classes)], 1).argmax(1)
    count = len(means)
    return Starts(means, means, population.spread.expand(count), population.whitening.expand(count, -1, -1), labels)


def shares(apart: Tensor, effective: float) -> Tensor:
    """Weights exp(-apart / t) whose sum is 1 and of which `effective` count, 1 / sum of squares (Kish 1965).

    Args:
        apart: float64 [N, M] at least 0.
        effective: at most M.
    Returns: [N, M].
    """
    scale = apart.mean(1, keepdim=True).clamp(min=torch.finfo(apart.dtype).tiny)
    low, high = (torch.full_like(scale, end) for end in (_COLDEST, _HOTTEST))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        weights = torch.softmax(-apart / scale * torch.exp(-middle), 1)
        few = 1 / weights.square().sum(1, keepdim=True) < effective
        low, high = torch.where(few, middle, low), torch.where(few, high, middle)
    return weights
