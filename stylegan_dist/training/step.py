"""The parts of a step: a global batch as micro-batches, and one phase with its backward passes and optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stylegan_dist.data.batches import Batch
from stylegan_dist.engine import Job, PhaseResult
from stylegan_dist.kinds import Kind
from stylegan_dist.objective.phases import MicroBatch, Phase
from stylegan_dist.training.state import TrainState


def run_phase(state: TrainState, phase: Phase, parts: list[MicroBatch],
              counts: Mapping[str, Tensor] | None = None) -> PhaseResult:
    """One optimizer step of one network.

    Args:
        parts: this rank's micro-batches.
        counts: numbers of this rank, summed over the ranks together with the gradients, so that they cost no collective.
    """
    for name, network in state.networks.items():
        network.requires_grad_(name == phase.network)
    jobs = [Job(loss, part) for part in parts for loss in phase.losses]
    optim = getattr(state.config.optim, phase.network)
    l1 = optim.l1 if phase.interval == 1 else 0.0
    skip = state.config.guard.nonfinite == "skip"
    result = state.learners[phase.network].step(jobs, counts or {}, l1, phase.second_order, skip, optim.clip)
    if not result.skipped:
        state.objective.after_phase(result.running_means)
    return result


def micro_batches(batch: Batch, size: int, conditional: bool, device: torch.device, kind: Kind,
                  held_out: Batch | None = None) -> list[MicroBatch]:
    """A rank's part of the global batch on the device, in parts of `size` images in the network's range.

    Args:
        held_out: as many held-out images, in the steps that have some.
    """
    def moved(one: Batch) -> tuple[Tensor, Tensor | None]:
        images = kind.to_network(one["sample"].to(device, non_blocking=True))
        return images, one["label"].to(device, non_blocking=True) if conditional else None

    columns = [*moved(batch), batch.index.to(device, non_blocking=True), *(moved(held_out) if held_out else ())]
    return [MicroBatch(*(None if column is None else column[i:i + size] for column in columns))  # type: ignore[arg-type]
            for i in range(0, len(batch.index), size)]
