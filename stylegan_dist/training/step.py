"""One global batch: micro-batches, the phases with their backward passes, reductions and optimizer steps, the average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_dist.data.arrays import ArrayForm, to_network
from stylegan_dist.data.batches import Batch
from stylegan_dist.training.engine import Job, PhaseResult
from stylegan_dist.training.phases import MicroBatch, Phase
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.timing import PhaseTimer


@dataclass(frozen=True)
class StepResult:
    """What a step has to say, apart from the statistics of the state."""

    stopping: Tensor     # `stop`, summed over the ranks, still on the device
    notices: list[str]   # what a person should hear


def run_step(state: TrainState, parts: list[MicroBatch], stop: Tensor, timer: PhaseTimer) -> StepResult:
    """Train both networks on one global batch. Waits for nothing that the device computes.

    Args:
        parts: this rank's micro-batches.
        stop: 1 if this rank wants to stop, else 0; on the device.
    """
    batch, notices = state.config.run.batch, []
    for phase in state.phases:
        if state.nimg // batch % phase.interval == 0:
            with timer(phase.name):
                result = run_phase(state, phase, parts, {"stop": stop})
            stopping = result.counts["stop"]
            notices += [result.notice] if result.notice else []
            suffix = phase.name.removesuffix("_main")
            state.statistics.add({**result.statistics, f"grad_norm/{suffix}": result.gradient_norm})
            state.statistics.add({f"grad_nonfinite/{phase.network}": result.nonfinite}, mean=False)
    state.ema.update(state.generator, state.nimg, batch)
    state.nimg += batch
    return StepResult(stopping, notices)


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
    l1 = getattr(state.config.optim, phase.network).l1 if phase.interval == 1 else 0.0
    result = state.learners[phase.network].step(jobs, counts or {}, l1, phase.second_order)
    result.statistics.update(state.objective.after(result.running_means, state.config.generator.w_avg_decay))
    return result


def micro_batches(batch: Batch, size: int, conditional: bool, device: torch.device,
                  array: ArrayForm | None = None) -> list[MicroBatch]:
    """A rank's part of the global batch on the device, in parts of `size` images in the network's range.

    Args:
        array: what the samples are if they are arrays; None: images, which come to [-1, 1].
    """
    images = to_network(batch.images.to(device, non_blocking=True), array)
    labels = batch.labels.to(device, non_blocking=True) if conditional else None
    index = batch.index.to(device, non_blocking=True)
    return [
        MicroBatch(images[i:i + size], None if labels is None else labels[i:i + size], index[i:i + size])
        for i in range(0, len(images), size)
    ]
