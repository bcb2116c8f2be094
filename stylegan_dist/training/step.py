"""One phase on one global batch: micro-batches, backward, reduction over the ranks, optimizer step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_dist.data.stream import Batch
from stylegan_dist.training.engine import Engine
from stylegan_dist.training.phases import MicroBatch, Phase
from stylegan_dist.training.state import TrainState


@dataclass
class PhaseResult:
    """What a phase has measured, the same on all ranks, still on the device."""

    means: dict[str, Tensor]  # statistics over the global batch
    nonfinite: Tensor         # gradient values that had to be replaced
    gradient_norm: Tensor


def run_phase(state: TrainState, engine: Engine, phase: Phase, parts: list[MicroBatch],
              riders: Mapping[str, Tensor] | None = None) -> PhaseResult:
    """One optimizer step of one network.

    Args:
        parts: this rank's micro-batches.
        riders: numbers to be summed over the ranks with the gradients, so that they cost no collective.
    """
    network, optimizer = state.networks[phase.network], state.optimizers[phase.network]
    for name, other in state.networks.items():
        other.requires_grad_(name == phase.network)
    optimizer.zero_grad(set_to_none=True)

    shares: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=engine.device))
    for part in parts:
        for loss in phase.losses:
            share, stats = loss(part)
            share.backward()
            for name, value in stats.items():
                shares[name] = shares[name] + value.detach()

    parameters: list[Tensor] = list(network.parameters())
    means, nonfinite, norm = engine.reduce(parameters, {**shares, **(riders or {})})
    l1 = getattr(state.config.optim, phase.network).l1
    if l1 and phase.interval == 1:
        torch._foreach_add_([p.grad for p in parameters if p.grad is not None], torch._foreach_sign(parameters), alpha=l1)
    optimizer.step()
    state.objective.after(means, state.config.generator.w_avg_decay)
    return PhaseResult(means, nonfinite, norm)


def micro_batches(batch: Batch, size: int, conditional: bool, device: torch.device) -> list[MicroBatch]:
    """A rank's part of the global batch on the device, in parts of `size` images in [-1, 1]."""
    images = batch.images.to(device, non_blocking=True).float().div_(127.5).sub_(1)
    labels = batch.labels.to(device, non_blocking=True) if conditional else None
    index = batch.index.to(device, non_blocking=True)
    return [
        MicroBatch(images[i:i + size], None if labels is None else labels[i:i + size], index[i:i + size])
        for i in range(0, len(images), size)
    ]
