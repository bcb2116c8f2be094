"""What comes of a loss of a batch, whole and as the sum over micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.objective.result import LossResult


def gradients_in_parts(loss: Callable[[MicroBatch], LossResult], real: MicroBatch, parts: int, parameters: Sequence[Tensor],
                       unused: bool = False) -> list[tuple[Tensor, Tensor]]:
    """For each parameter the sum over micro-batches, and the gradient of the whole batch.

    Args:
        real: with labels.
        parts: of equal size.
        unused: whether there may be parameters that the loss does not see; their gradients are zero.
    """
    return results_in_parts(loss, real, parts, parameters, unused)[0]


def results_in_parts(loss: Callable[[MicroBatch], LossResult], real: MicroBatch, parts: int, parameters: Sequence[Tensor],
                     unused: bool) -> tuple[list[tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
    """As `gradients_in_parts`, and likewise the running means by name."""
    def results(part: MicroBatch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        result = loss(part)
        gradients = torch.autograd.grad(result.share, parameters, allow_unused=unused, materialize_grads=unused)
        return gradients, result.running_means

    size = len(real.images) // parts
    whole, *split = (results(part) for part in [real, *(
        MicroBatch(real.images[i:i + size], real.labels[i:i + size], real.index[i:i + size])
        for i in range(0, len(real.images), size))])
    sums = [sum(gradients) for gradients in zip(*(part[0] for part in split), strict=True)]
    assert all(part[1].keys() == whole[1].keys() for part in split)
    means = {name: (sum(part[1][name] for part in split), value) for name, value in whole[1].items()}
    return list(zip(sums, whole[0], strict=True)), means
