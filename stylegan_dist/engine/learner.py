"""One network that learns, with its optimizer, replicated or sharded over the ranks.

Every engine is a subclass. All take the same optimizer step: gradients are summed over micro-batches and ranks
in float32, non-finite values are counted and replaced, parameters without a gradient take part with zeros. Or the update is
left out where there is a non-finite value; what decides is the same number on all ranks.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stylegan_dist.objective.result import LossResult
from stylegan_dist.ranks import Ranks, Sharded, part_of, sum_of_bits

LIMIT = 1e5  # infinite gradients become this large, as in Karras et al. 2020b


@dataclass(frozen=True)
class Job:
    """A loss and what it works on.

    Attributes:
        loss: of `part`.
        part: a micro-batch: a dataclass of tensors.
    """

    loss: Callable[[Any], LossResult]
    part: Any

    def __call__(self) -> LossResult:
        return self.loss(self.part)


@dataclass
class PhaseResult:
    """What a phase has measured, the same on all ranks, still on the device."""

    statistics: dict[str, Tensor]     # over the global batch
    running_means: dict[str, Tensor]  # means over the global batch, towards which running means move
    counts: dict[str, Tensor]         # what the ranks gave as `counts`, summed
    nonfinite: Tensor                 # gradient values that had to be replaced
    gradient_norm: Tensor             # before it was clipped
    notice: str = ""                  # what a person should hear, once
    skipped: bool = False             # whether the update was left out

    def broken(self) -> Tensor:
        """Whether a value of the gradient, or a number that the losses report, is not finite: bool [], on the device."""
        return (self.nonfinite > 0) | (count_nonfinite(self.statistics.values()) > 0)


class Sums:
    """Numbers that are summed over micro-batches and ranks together with the gradients.

    Their order is that in which they were added: with more than two ranks, where a number lies decides how it is rounded.
    """

    def __init__(self, values: Mapping[tuple[str, str], Tensor] | None = None):
        self._values = dict(values or {})  # (field of PhaseResult, name) -> sum so far

    def add(self, **fields: Mapping[str, Tensor]) -> None:
        """Add values to the fields of PhaseResult."""
        for field, values in fields.items():
            for name, value in values.items():
                before = self._values.get((field, name), torch.zeros((), device=value.device))
                self._values[field, name] = before + value.detach()

    def add_loss(self, result: LossResult) -> None:
        self.add(statistics=result.statistics, running_means=result.running_means)

    def flat(self) -> list[Tensor]:
        """All values as lines of float32."""
        return [value.float().reshape(-1) for value in self._values.values()]

    def replaced(self, line: Tensor) -> Sums:
        """The same numbers with the values of `line`, which is as long as all of `flat`."""
        pieces = line.split([value.numel() for value in self._values.values()])
        return Sums({key: piece.view_as(value) for (key, value), piece in zip(self._values.items(), pieces, strict=True)})

    def of(self, field: str) -> dict[str, Tensor]:
        """The numbers of a field of PhaseResult."""
        return {name: value for (its, name), value in self._values.items() if its == field}

    def result(self, nonfinite: Tensor, gradient_norm: Tensor) -> PhaseResult:
        """As the result of a phase."""
        return PhaseResult(self.of("statistics"), self.of("running_means"), self.of("counts"), nonfinite, gradient_norm)


class Learner(abc.ABC):
    """A network and its optimizer under an engine.

    Attributes:
        network: the plain module, for every use but its own phases.
        optimizer: as it was built; the engine may have replaced its parameters.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks):
        self.network = network
        self.optimizer = optimizer
        self.ranks = ranks
        self.shapes = {name: p.shape for name, p in network.named_parameters()}

    @abc.abstractmethod
    def step(self, jobs: Sequence[Job], counts: Mapping[str, Tensor], l1: float, second_order: bool,
             skip: bool = False, clip: float = 0.0) -> PhaseResult:
        """One optimizer step.

        Args:
            jobs: the losses of this rank's micro-batches; each is called once, and its backward pass run.
            counts: numbers of this rank, to be summed over the ranks with the statistics.
            l1: this times sign(parameter) is added to the gradient.
            second_order: whether a job differentiates through a gradient of this network.
            skip: leave the update out where the result is `broken`. This waits for the device.
            clip: the norm to which a longer gradient is scaled, before `l1`; 0 for none. The result has its norm of before.
        """

    def gradients(self, jobs: Sequence[Job]) -> dict[str, Tensor]:
        """The summed gradient of some losses by parameter, as it is; none where the engine does not keep it.

        All ranks must call it. No step is to follow.
        """
        return {}

    def parameters(self) -> dict[str, Tensor | Sharded]:
        """The values of all parameters by name."""
        return {name: p.detach() for name, p in self.network.named_parameters()}

    @abc.abstractmethod
    def optimizer_state(self) -> dict[str, Tensor | Sharded]:
        """The optimizer's state as "<parameter>.<key>"; hyper-parameters belong to the configuration."""

    @abc.abstractmethod
    def restore(self, parameters: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        """Take over what `parameters` and `optimizer_state` of any engine gave. Names, shapes and types must fit.

        Needs no other rank.
        """

    def local(self) -> Iterator[tuple[str, Tensor, int]]:
        """(name, values, start): this rank's part of each flattened parameter, as a view, and where it begins.

        The parts of all ranks make up the parameter; each is ceil(size / ranks) long, the last ones shorter.
        """
        for name, parameter in self.network.named_parameters():
            start, length = part_of(parameter.numel(), self.ranks)
            yield name, parameter.detach().flatten()[start:start + length], start

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Let go of the process group. The network is not to be used after."""

    def checksum(self) -> float:
        """A number that is the same on all ranks if they hold the same network."""
        return sum_of_bits(self.network.parameters())


class LossInForward(nn.Module):
    """What an engine wraps: its forward is one whole loss, penalties included.

    Wrappers hook their forward's output and expect one backward pass through it. A gradient penalty, or another
    network's loss, traverses the graph more than once; inside of the forward nobody sees that.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.sums = Sums()  # to which forward adds

    def forward(self, job: Job, touch: bool) -> Tensor:
        """The share of the loss. With `touch`, every parameter takes part, if only with a gradient of zero."""
        result = job()
        self.sums.add_loss(result)
        return _Touch.apply(result.share, *self.network.parameters()) if touch else result.share


class _Touch(torch.autograd.Function):
    """The identity, with a gradient of zero to every further argument."""

    @staticmethod
    def forward(ctx, share: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.parameters = parameters
        return share.view_as(share)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return gradient, *(p.new_zeros(()).expand(p.shape) for p in ctx.parameters)


def count_nonfinite(values: Iterable[Tensor]) -> Tensor | int:
    """How many of some numbers [] are not finite; on their device."""
    line = list(values)
    return len(line) - torch.stack(line).isfinite().sum() if line else 0


def scrub(gradient: Tensor) -> Tensor:
    """Replace nan by 0 and infinities by +-1e5 in place; returns how many there were."""
    nonfinite = gradient.numel() - torch.isfinite(gradient).sum()
    torch.nan_to_num(gradient, nan=0.0, posinf=LIMIT, neginf=-LIMIT, out=gradient)
    return nonfinite


def clipping(norm: Tensor, clip: float) -> Tensor:
    """What a gradient of that norm [] is multiplied with, so that it is not longer than `clip`."""
    return clip / norm.clamp_min(clip)
