"""What all scores share: checked features, pieces of fixed sizes, subsets drawn by address, and the floor of a score.

Features are one vector for each image, [n, d], of any floating dtype and on any device. They are in the order of the images'
numbers, so that their rows do not depend on batches and ranks. All arithmetic is in float64, on pieces of fixed sizes. A score
then depends on the features alone, to the last bit on one machine with one number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.randomness import permutation
from stylegan_dist.ranks import Ranks, assemble

ROWS = 2048            # of a piece; a tile of products of two pieces has 32 MiB, a piece of 2048 features as well
_NUMBERS = 1 << 22     # float64 of a piece at most, where vectors are longer than that
_Score = TypeVar("_Score")


def check_features(features: Tensor, name: str, least: int = 2) -> None:
    """Refuse what has no score.

    Args:
        features: [n, d], floating.
        name: of the set, for the message.
        least: rows that the score needs.
    Raises:
        ValueError: another shape or dtype.
        InputError: too few rows; values that are not finite.
    """
    if features.ndim != 2 or features.shape[1] == 0 or not features.is_floating_point():
        raise ValueError(f"{name}: features must be floating [n, d] with d > 0, got {features.dtype} {list(features.shape)}")
    if len(features) < least:
        raise InputError(f"{name}: {len(features)} samples are too few for this score: use at least {least}")
    for start, end in pieces(len(features), features.shape[1]):
        if not features[start:end].isfinite().all():
            raise InputError(f"{name}: features of samples {start} to {end - 1} are not all finite: look at these samples, "
                             "and at the weights of the networks")


def check_pair(real: Tensor, generated: Tensor, least: int = 2) -> None:
    """`check_features` of both, which must be of one network and on one device.

    Raises:
        ValueError, InputError: as `check_features`; different lengths of vectors; different devices.
    """
    check_features(real, "real", least)
    check_features(generated, "generated", least)
    if real.shape[1] != generated.shape[1] or real.device != generated.device:
        raise ValueError(f"real features [n, {real.shape[1]}] on {real.device} and generated ones [n, {generated.shape[1]}] on "
                         f"{generated.device} cannot be compared")


def piece_rows(width: int) -> int:
    """Rows of a piece of vectors of `width` numbers: fixed, so that the order of sums is."""
    return max(1, min(ROWS, _NUMBERS // width))


def pieces(count: int, width: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of the pieces of rows first, ..., count - 1."""
    rows = piece_rows(width)
    for start in range(first, count, rows):
        yield start, min(start + rows, count)


def subset(count: int, size: int, seed: int, number: int) -> Tensor:
    """`size` different rows of `count`, int64 [size], a pure function of the arguments.

    Subsets of one number are nested: a smaller one is the beginning of a larger one.

    Args:
        number: of the draw; different ones are independent.
    """
    return torch.from_numpy(permutation(seed, "metrics.subset", number, count)[:size])


def halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of two disjoint halves of `count` rows, int64 [count // 2] each, in rising order. An odd row is left out."""
    order = torch.from_numpy(permutation(seed, "metrics.halves", 0, count))
    half = count // 2
    return order[:half].sort().values, order[half:2 * half].sort().values


def real_floor(score: Callable[[Tensor, Tensor], _Score], real: Tensor, seed: int = 0) -> _Score:
    """The score of one half of the real samples against the other: what a perfect generator would get.

    The halves are half as large as the set. A score that depends on the number of samples must therefore be compared with care:
    Fréchet distances fall like 1/n (`frechet_bias` has the law).

    Args:
        score: takes real and generated features.
        real: [n, d].
        seed: of the halves.
    """
    first, second = halves(len(real), seed)
    return score(real[first.to(real.device)], real[second.to(real.device)])


def gather_features(part: Tensor, start: int, count: int, ranks: Ranks) -> Tensor:
    """The features of all ranks in the order of their samples' numbers, on every rank: float32 [count, d]. All must call it.

    Scores of pairs need all features in one place. What is computed of the result is equal to the last bit on any number of
    ranks, if the features are.

    Args:
        part: float32 [m, d], of samples start, ..., start + m - 1, on the device of the ranks; m may be 0. No two ranks have
            the same sample.
    """
    width = part.shape[1]
    return assemble(torch.Size([count, width]), part.reshape(-1).float(), start * width, ranks)
