"""Gradients of a loss of a batch, whole and as the sum over micro-batches."""

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
    def gradients(part: MicroBatch) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(part).share, parameters, allow_unused=unused, materialize_grads=unused)

    whole, size = gradients(real), len(real.images) // parts
    sums = [torch.zeros_like(p) for p in parameters]
    for i in range(0, len(real.images), size):
        part = MicroBatch(real.images[i:i + size], real.labels[i:i + size], real.index[i:i + size])
        sums = [a + b for a, b in zip(sums, gradients(part), strict=True)]
    return list(zip(sums, whole, strict=True))
