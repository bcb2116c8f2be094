"""DeepSpeed ZeRO: optimizer state, gradients and parameters of one network are sharded over the ranks.

Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models". Each network has one
DeepSpeed engine, in float32, without any of DeepSpeed's own precision, clipping or checkpoints. It then computes what
data parallel training computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stylegan_dist.engine.choice import Zero
from stylegan_dist.engine.deepspeed_adapter import DeepSpeedNetwork, Fragment
from stylegan_dist.engine.learner import (
    LIMIT,
    Job,
    Learner,
    LossInForward,
    PhaseResult,
    Sums,
    clipping,
    count_nonfinite,
    scrub,
)
from stylegan_dist.engine.preflight import set_timeout
from stylegan_dist.errors import InputError
from stylegan_dist.ranks import COMMUNICATION, Ranks, Sharded, assemble, lost_ranks_reported

# Optimizers that work on each number alone, so that they do not notice how parameters are cut; each is tested.
ELEMENTWISE = ("Adam", "AdamW", "SGD", "RMSprop", "Adadelta")


class ZeroLearner(Learner):
    """A network under DeepSpeed.

    Raises:
        InputError: DeepSpeed is not installed, or the optimizer is not proven equal.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, zero: Zero, timeout: float):
        super().__init__(network, optimizer, ranks)
        if type(optimizer).__name__ not in ELEMENTWISE:
            raise InputError(f"torch.optim.{type(optimizer).__name__} is not proven equal under DeepSpeed: use one of "
                             f"{', '.join(ELEMENTWISE)}, or a data parallel configuration such as launch/accelerate/8gpu.yaml")
        self._cut = zero.stage == 3  # the parameters, too
        self._l1 = self._clip = 0.0
        self._factor: Tensor | None = None  # with which this step's gradient is clipped, once that is known
        self._norm2 = self._nonfinite = torch.zeros((), device=ranks.device)
        self._skip = False
        self._skipped: bool | None = None  # whether this step's update is left out, once that is known
        self._withheld: list[tuple[Tensor, Tensor]] = []  # what the optimizer must not see, and its gradient
        optimizer.register_step_pre_hook(self._before_update)
        optimizer.register_step_post_hook(self._after_update)
        network.requires_grad_(True)  # what is frozen now would never be summed
        self._module = LossInForward(network)
        self._deepspeed = DeepSpeedNetwork(self._module, optimizer, zero, ranks)
        set_timeout(timeout)  # DeepSpeed makes process groups of its own

    @torch.no_grad()
    def step(self, jobs: Sequence[Job], counts: Mapping[str, Tensor], l1: float, second_order: bool,
             skip: bool = False, clip: float = 0.0) -> PhaseResult:
        self._l1, self._skip, self._skipped, self._clip, self._factor = l1, skip, None, clip, None
        self._norm2 = self._nonfinite = torch.zeros((), device=self.ranks.device)
        hold = second_order and self._cut
        sums = self._module.sums = Sums()
        with lost_ranks_reported(COMMUNICATION):
            for number, job in enumerate(jobs):
                whole = self._deepspeed.whole(self.network.parameters()) if hold else contextlib.nullcontext()
                with torch.enable_grad(), whole:
                    # A cut parameter that nobody has fetched cannot be touched; phases of first order use all.
                    share = self._deepspeed.forward(number == len(jobs) - 1, job, hold or not self._cut)
                    if number == len(jobs) - 1 and not self._cut:  # the backward pass that follows communicates
                        self.ranks.computed()
                    self._deepspeed.backward(share)
            early = list(self._deepspeed.gradients_before_update())
            for gradient in early:
                self._nonfinite = self._nonfinite + scrub(gradient)
            if clip and early:
                self._factor = self._clipping(early)
            del early
            self._deepspeed.update()
        sums.add(counts=counts)
        # The norm and the number are of this rank's part, too.
        line = self.ranks.sum(torch.cat([*sums.flat(), self._norm2.float().view(1), self._nonfinite.float().view(1)]))
        result = sums.replaced(line[:-2]).result(nonfinite=line[-1], gradient_norm=line[-2].sqrt())
        result.skipped = bool(self._skipped)
        return result

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Called with the summed gradients of this rank's part, once for each of DeepSpeed's groups."""
        if self._skip and self._skipped is None:
            self._skipped = self._any_broken(optimizer)
        if self._clip and self._factor is None:
            self._factor = self._clipping(self._lines(optimizer))
        for group in optimizer.param_groups:
            for values in group["params"]:
                gradient = values.grad
                self._nonfinite = self._nonfinite + scrub(gradient).to(self.ranks.device)
                self._norm2 = self._norm2 + gradient.square().sum().to(self.ranks.device)
                if self._factor is not None:
                    gradient.mul_(self._factor.to(gradient.device))
                if self._l1:
                    gradient.add_(values.sign(), alpha=self._l1)
                if self._skipped:
                    self._withheld.append((values, gradient))
                    values.grad = None  # so that the optimizer changes nothing of it, and DeepSpeed has its way

    def _after_update(self, *_: object) -> None:
        for values, gradient in self._withheld:
            values.grad = gradient  # offloaded ones are used again
        self._withheld.clear()

    def _any_broken(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether any rank has a loss or a gradient that is not finite. All ranks must call it."""
        number = self._nonfinite + count_nonfinite(self._module.sums.of("statistics").values())
        for line in self._lines(optimizer):
            number = number + (~line.isfinite()).sum().to(self.ranks.device)
        return bool(self.ranks.sum(number.float()) > 0)

    def _lines(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """The gradients of this rank's parts, in an update that has begun: each once, or all that there were before it."""
        lines = [values.grad for group in optimizer.param_groups for values in group["params"]]
        return list({id(line): line for line in (*lines, *self._deepspeed.gradients_in_update())}.values())

    def _clipping(self, lines: list[Tensor]) -> Tensor:
        """With what the gradient is multiplied, from all of this rank's parts. All ranks must call it."""
        norm2 = torch.zeros((), device=self.ranks.device)
        for line in lines:
            finite = torch.nan_to_num(line, nan=0.0, posinf=LIMIT, neginf=-LIMIT)
            norm2 = norm2 + finite.square().sum().to(self.ranks.device)
        return clipping(self.ranks.sum(norm2.float().view(1))[0].sqrt(), self._clip)

    def parameters(self) -> dict[str, Tensor | Sharded]:
        if not self._cut:
            return super().parameters()
        return {name: self._sharded(name, part, start) for name, part, start in self.local()}

    def optimizer_state(self) -> dict[str, Tensor | Sharded]:
        result: dict[str, Tensor | Sharded] = {}
        for name, fragment in self._fragments():
            for key, value in self.optimizer.state.get(fragment.flat, {}).items():
                if value is None:
                    continue
                value = torch.as_tensor(value)
                if value.shape == fragment.flat.shape:
                    result[f"{name}.{key}"] = self._sharded(name, fragment.of(value), fragment.start)
                else:  # one for all, such as the number of steps
                    result[f"{name}.{key}"] = value.clone()
        return result

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        fragments = dict(self._fragments())

        def part_of(name: str, value: Tensor) -> Tensor:
            start = fragments[name].start
            return value.flatten()[start:start + fragments[name].length]

        for name, parameter in self.network.named_parameters():
            value, fragment = parameters[name], fragments[name]
            part = part_of(name, value)
            fragment.of(fragment.flat).copy_(part)
            if self._cut:
                self._deepspeed.cut_part(parameter)[:fragment.length].copy_(part)
            if parameter.numel() == value.numel():  # not given away
                parameter.data.copy_(value.view(parameter.shape))
        self.optimizer.state.clear()
        # A parameter without dimensions does not tell whether a state belongs to its value; another one does.
        elementwise = {key for name, key, value in _named(optimizer_state)
                       if self.shapes[name] and value.shape == self.shapes[name]}
        for name, key, value in _named(optimizer_state):
            fragment = fragments[name]
            state = self.optimizer.state[fragment.flat]
            if key not in elementwise:
                state[key] = value.clone()
                continue
            if key not in state:
                state[key] = torch.zeros_like(fragment.flat)
            fragment.of(state[key]).copy_(part_of(name, value))

    def local(self) -> Iterator[tuple[str, Tensor, int]]:
        if not self._cut:
            yield from super().local()
            return
        for name, parameter in self.network.named_parameters():
            fragment = self._deepspeed.fragment(parameter, self.shapes[name])
            yield name, self._deepspeed.cut_part(parameter)[:fragment.length], fragment.start

    def close(self) -> None:
        self._deepspeed.close()

    def checksum(self) -> float:
        return 0.0 if self._cut else super().checksum()  # no rank holds what another has, too

    def _sharded(self, name: str, part: Tensor, start: int) -> Sharded:
        shape = self.shapes[name]
        return Sharded(shape, torch.float32, lambda: assemble(shape, part, start, self.ranks))

    def _fragments(self) -> Iterator[tuple[str, Fragment]]:
        for name, parameter in self.network.named_parameters():
            yield name, self._deepspeed.fragment(parameter, self.shapes[name])


def _named(optimizer_state: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """(parameter, key, value). Each value is read from the disk when it comes."""
    for full_name in optimizer_state:
        name, _, key = full_name.rpartition(".")
        yield name, key, optimizer_state[full_name]
