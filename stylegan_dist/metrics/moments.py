"""Mean and covariance of features: accumulated in pieces, summed over ranks, kept in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.files import replacing
from stylegan_dist.metrics.features import piece_rows
from stylegan_dist.ranks import ALONE, Ranks

REMEDY = "remove it, so that it is computed again"


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of features, on the CPU.

    The covariance is the unbiased one, with the divisor count - 1, as in the code of Heusel et al. 2017 (numpy.cov) and in
    torch-fidelity. The law of the bias of Fréchet distances (`frechet_bias`) and exact tests by whitening hold for it as it is.
    The code of StyleGAN divides by the count: its covariances are smaller by 1 / count, at 50,000 samples by 0.002 %.

    Attributes:
        count: of samples, at least 2.
        mean: float64 [d].
        covariance: float64 [d, d], symmetric to the last bit.
    """

    count: int
    mean: Tensor
    covariance: Tensor

    @property
    def width(self) -> int:
        """Numbers of a feature vector."""
        return len(self.mean)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features [n, d] in one tensor.

        Raises:
            InputError: fewer than 2 samples; values that are not finite.
        """
        sums = MomentSums(features.shape[1], features.device)
        sums.add(features)
        return sums.moments()

    def save(self, path: Path) -> None:
        """Write a safetensors file of `count`, `mean` and `covariance`, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        content = {"count": torch.tensor(self.count), "mean": self.mean, "covariance": self.covariance}
        with replacing(path) as temporary:
            save_file(content, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` has written.

        Raises:
            OSError: it cannot be read.
            InputError: it is damaged or something else.
        """
        try:
            content = load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is damaged ({error}): {REMEDY}") from None
        if problem := _problem(content):
            raise InputError(f"{path} is damaged ({problem}): {REMEDY}")
        return cls(int(content["count"]), content["mean"], content["covariance"])


class MomentSums:
    """Accumulates features in the order in which they come. Ranks add up theirs at the end.

    Rows are collected until a piece of a fixed size is full. The result therefore does not depend on the sizes of the batches,
    to the last bit. Count, mean and sum of squared deviations of a piece are merged with those before (Chan, Golub, LeVeque
    1979, "Updating formulae and a pairwise algorithm for computing sample variances"). Plain sums of squares would lose as many
    digits as the squared mean has more than the variance.

    Args:
        width: numbers of a feature vector, d.
        device: where to compute.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._squares = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._piece = torch.empty(piece_rows(width), width, dtype=torch.float64, device=device)
        self._filled = 0

    def add(self, features: Tensor) -> None:
        """Take in features [n, d], n may be 0.

        Raises:
            ValueError: another shape.
        """
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise ValueError(f"features must be [n, {len(self._mean)}], got {list(features.shape)}")
        while len(features):
            taken = min(len(features), len(self._piece) - self._filled)
            self._piece[self._filled:self._filled + taken] = features[:taken]
            self._filled += taken
            features = features[taken:]
            if self._filled == len(self._piece):
                self._merge()

    def moments(self, ranks: Ranks = ALONE) -> Moments:
        """Of all that was added, on all ranks together; all ranks must call it, each with its own samples. It ends a piece.

        The same on every rank. Another number of ranks changes the order of sums, and so the last digits. Two collectives: the
        counts and means, then the deviations from the common mean.

        Raises:
            InputError: fewer than 2 samples; values that are not finite.
        """
        self._merge()
        head = torch.cat([self._mean.new_tensor([self.count]), self._mean * self.count]).to(ranks.device)
        ranks.sum(head)
        count = int(head[0])
        if count < 2:
            raise InputError(f"a covariance of {count} samples does not exist: use at least 2")
        mean = self._mean
        squares = self._squares.to(ranks.device, copy=True)
        if ranks.world_size > 1:
            mean = head[1:] / count
            off = self._mean.to(ranks.device) - mean
            squares.addr_(off, off, alpha=self.count)
            ranks.sum(squares)
        mean, squares = mean.cpu(), squares.cpu()
        if not (mean.isfinite().all() and squares.isfinite().all()):
            raise InputError(f"the features of {count} samples are not all finite: look at the samples, and at the weights of "
                             "the networks")
        return Moments(count, mean, (squares + squares.T) / (2 * (count - 1)))

    def _merge(self) -> None:
        """Merge the rows that are collected into count, mean and squares."""
        rows = self._piece[:self._filled]
        if not len(rows):
            return
        mean = rows.mean(0)
        rows -= mean
        off, total = mean - self._mean, self.count + len(rows)
        self._squares.addmm_(rows.T, rows)
        self._squares.addr_(off, off, alpha=self.count * len(rows) / total)
        self._mean += off * (len(rows) / total)
        self.count, self._filled = total, 0


def _problem(content: dict[str, Tensor]) -> str:
    """What is wrong with a file of moments, or nothing."""
    if content.keys() != {"count", "mean", "covariance"}:
        return "it has not the tensors count, mean and covariance"
    count, mean, covariance = content["count"], content["mean"], content["covariance"]
    if count.dtype != torch.int64 or count.ndim or int(count) < 2:
        return "count is no number of at least 2"
    if mean.dtype != torch.float64 or mean.ndim != 1 or not len(mean) or covariance.dtype != torch.float64 \
            or covariance.shape != (len(mean), len(mean)):
        return "mean and covariance are not float64 [d] and [d, d]"
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        return "values are not finite"
    if not torch.equal(covariance, covariance.T) or (covariance.diagonal() < 0).any():
        return "it is the covariance of nothing"
    return ""
