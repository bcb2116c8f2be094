"""Data parallel training: every rank holds everything, gradients are summed."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stylegan_dist.engine.learner import Job, Learner, LossInForward, PhaseResult, Sums, clipping, scrub
from stylegan_dist.objective.result import LossResult
from stylegan_dist.ranks import COMMUNICATION, Ranks, Sharded, lost_ranks_reported


class FlatLearner(Learner):
    """After the backward passes of a phase, one all-reduce of all gradients; statistics ride along."""

    @torch.no_grad()
    def step(self, jobs: Sequence[Job], counts: Mapping[str, Tensor], l1: float, second_order: bool,
             skip: bool = False, clip: float = 0.0) -> PhaseResult:
        line, sums = self._accumulate(jobs, counts)
        size = sum(p.numel() for p in self.network.parameters())
        self.ranks.computed()
        self.ranks.sum(line)
        # A copy: the gradients' buffer must not live on in the statistics.
        return self._finish(line[:size], sums.replaced(line[size:].clone()), l1, skip, clip)

    @torch.no_grad()
    def gradients(self, jobs: Sequence[Job]) -> dict[str, Tensor]:
        line, _ = FlatLearner._accumulate(self, jobs, {})
        size = sum(shape.numel() for shape in self.shapes.values())
        pieces = self.ranks.sum(line[:size].clone()).split([shape.numel() for shape in self.shapes.values()])
        return dict(zip(self.shapes, pieces, strict=True))

    def _accumulate(self, jobs: Sequence[Job], counts: Mapping[str, Tensor]) -> tuple[Tensor, Sums]:
        """All backward passes: a line of the gradients of all parameters and of this rank's sums, and these."""
        self.optimizer.zero_grad(set_to_none=True)
        sums = Sums()
        for job in jobs:
            with torch.enable_grad():
                result = job()
                result.share.backward()
            sums.add_loss(result)
        sums.add(counts=counts)
        parameters = list(self.network.parameters())
        pieces = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in parameters]
        return torch.cat(pieces + sums.flat()), sums

    def _finish(self, gradient: Tensor, sums: Sums, l1: float, skip: bool, clip: float) -> PhaseResult:
        """The optimizer step, from the summed gradient of all parameters."""
        parameters: list[Tensor] = list(self.network.parameters())
        nonfinite = scrub(gradient)
        result = sums.result(nonfinite, torch.linalg.vector_norm(gradient))
        if clip:
            gradient *= clipping(result.gradient_norm, clip)
        pieces = gradient.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        if l1:
            torch._foreach_add_([p.grad for p in parameters], torch._foreach_sign(parameters), alpha=l1)  # type: ignore[misc]
        result.skipped = skip and bool(result.broken())
        if not result.skipped:
            self.optimizer.step()
        return result

    def optimizer_state(self) -> dict[str, Tensor | Sharded]:
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self.network.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items() if value is not None
        }

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        numbers = {}
        for number, (name, parameter) in enumerate(self.network.named_parameters()):
            parameter.copy_(parameters[name])
            numbers[name] = number
        state: dict[int, dict[str, Tensor]] = {}
        for full_name in optimizer_state:
            name, _, key = full_name.rpartition(".")
            state.setdefault(numbers[name], {})[key] = optimizer_state[full_name]
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


class BucketLearner(FlatLearner):
    """torch's DistributedDataParallel: buckets of gradients are summed while the last backward pass still runs."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks):
        super().__init__(network, optimizer, ranks)
        network.requires_grad_(True)  # what is frozen now would never be summed
        self._module = LossInForward(network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about a new name that older versions do not know
            # Not static_graph: it skips sums where a forward traverses the graph twice.
            self._parallel = DistributedDataParallel(self._module, broadcast_buffers=False)
        # Weak: DDP would keep this object, and with it the process group, alive into the interpreter's end.
        self._parallel.register_comm_hook(weakref.ref(self), _sum_bucket)
        # Where a value lies in its bucket decides in which order more than two ranks add it, and DDP orders the buckets
        # anew after its first backward pass. If that were a step's, the first step after a restart would differ.
        with torch.enable_grad():
            self._parallel(self._all_parameters, False).backward()

    def _all_parameters(self) -> LossResult:
        """A loss of zero whose backward pass meets the last parameter first, as those of the networks by and large do."""
        total = torch.zeros((), device=self.ranks.device)
        for parameter in self.network.parameters():
            total = total + parameter.sum()
        return LossResult(total * 0, {})

    @torch.no_grad()
    def step(self, jobs: Sequence[Job], counts: Mapping[str, Tensor], l1: float, second_order: bool,
             skip: bool = False, clip: float = 0.0) -> PhaseResult:
        self.optimizer.zero_grad(set_to_none=True)
        self._module.sums = Sums()
        for number, job in enumerate(jobs):
            last = number == len(jobs) - 1
            with torch.enable_grad(), contextlib.nullcontext() if last else self._parallel.no_sync():
                share = self._parallel(job, last)
                if last:
                    self._module.sums.add(counts=counts)
                with lost_ranks_reported(COMMUNICATION):
                    share.backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in self.network.parameters()])  # type: ignore[union-attr]
        return self._finish(gradient, self._module.sums, l1, skip, clip)

    def close(self) -> None:
        del self._parallel


def _sum_bucket(learner, bucket):  # DDP refuses annotations that are strings
    """Called by DDP in the order of the backward pass; the last bucket takes the statistics along."""
    gradient, module = bucket.buffer(), learner()._module
    extras = module.sums.flat() if bucket.is_last() else []
    if bucket.is_last():
        learner().ranks.computed()
    work = dist.all_reduce(torch.cat([gradient, *extras]) if extras else gradient, async_op=True)
    assert work is not None

    def arrived(future: torch.futures.Future) -> Tensor:
        (received,) = future.value()
        if extras:
            module.sums = module.sums.replaced(received[len(gradient):].clone())
        return received[:len(gradient)]

    return work.get_future().then(arrived)
