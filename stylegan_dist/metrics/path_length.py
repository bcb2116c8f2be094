"""Perceptual path length in W (Karras et al. 2019, section 4.1): how much an image changes with a small step of w.

StyleGAN2's way ("ppl2_wend"): steps at the end of the path, t = 0, epsilon 1e-4, and the mean of all lengths between the 1st
and the 99th percentile. The caller gives pairs of w, the generator and the distance. Published values have 50,000 pairs, images
of at most 256 pixels (larger ones are averaged down), and LPIPS of VGG as distance. Others have a name of their own.

Images must not be quantised: a step of 1e-4 changes hardly any byte, and rounding would be measured. For the same reason the
generator must compute in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_dist.metrics.features import check_features

EPSILON = 1e-4


@dataclass(frozen=True)
class PathLength:
    """A trimmed mean of squared lengths.

    Attributes:
        value: the mean, in units of the distance over epsilon^2.
        error: its standard error, from the lengths that are left.
        kept: number of lengths that are left.
    """

    value: float
    error: float
    kept: int


def path_lengths(w0: Tensor, w1: Tensor, synthesize: Callable[[Tensor], Tensor], distance: Callable[[Tensor, Tensor], Tensor],
                 t: Tensor | float = 0.0, epsilon: float = EPSILON) -> Tensor:
    """distance(G(lerp(w0, w1, t)), G(lerp(w0, w1, t + epsilon))) / epsilon^2 of a batch of pairs.

    `synthesize` is called twice, with the two ends of the same n steps. It must give each of them the same noise both times:
    by the numbers of the pairs, not by a generator with a state. Then the lengths do not depend on batches and ranks.

    Args:
        w0, w1: [n, ...], drawn by (seed, number of the pair).
        synthesize: w [n, ...] -> images [n, C, H, W], float, not quantised.
        distance: images, images -> [n]; of second order in the difference, as LPIPS is.
        t: where on the path, in [0, 1]; a tensor [n], or one number for all.
        epsilon: length of the step as a part of the path.
    Returns: float64 [n], on the device of the distance.

    Raises:
        ValueError: shapes that do not fit; images of integers; a step that is no number above 0.
    """
    if w0.shape != w1.shape or not w0.ndim:
        raise ValueError(f"pairs must have one shape, got {list(w0.shape)} and {list(w1.shape)}")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    place = torch.as_tensor(t, dtype=torch.float64, device=w0.device)
    place = place.reshape(-1, *[1] * (w0.ndim - 1))
    start, path = w0.double(), w1.double() - w0.double()
    first, second = (synthesize((start + path * at).to(w0.dtype)) for at in (place, place + epsilon))
    if not first.is_floating_point():
        raise ValueError(f"images of {first.dtype} are quantised: a step of {epsilon} would measure the rounding")
    lengths = distance(first, second)
    if lengths.shape != w0.shape[:1]:
        raise ValueError(f"distances must be [{len(w0)}], got {list(lengths.shape)}")
    return lengths.double() / epsilon**2


def trimmed_path_length(lengths: Tensor, low: float = 1, high: float = 99) -> PathLength:
    """The mean of the lengths from the percentile `low` to the percentile `high`, as StyleGAN takes it.

    The first is rounded down to a length that occurs, the second up. Both are kept, with all that are equal to them.

    Args:
        lengths: [n], of all pairs, in any order.
        low, high: 0 <= low < high <= 100.
    Raises:
        ValueError: other percentiles; another shape.
        InputError: fewer than 2 lengths; lengths that are not finite.
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles must rise in [0, 100], got {low} and {high}")
    check_features(lengths[:, None], "path lengths")
    values = lengths.double().sort().values  # one order of sums, whatever that of the pairs
    last = len(values) - 1
    lower, upper = values[math.floor(last * low / 100)], values[math.ceil(last * high / 100)]
    kept = values[(values >= lower) & (values <= upper)]
    error = float(kept.std()) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan
    return PathLength(float(kept.mean()), error, len(kept))
