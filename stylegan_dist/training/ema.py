"""The averaged generator. It is the one that is shown, saved and evaluated."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stylegan_dist.config.schedules import Scheduled, value_at
from stylegan_dist.engine import Learner
from stylegan_dist.networks.generator import Generator
from stylegan_dist.ranks import Sharded, assemble, sum_of_bits


class AveragedGenerator:
    """Exponential moving average of a generator's parameters, with time measured in images.

    Karras et al. 2018, appendix A.2; the ramp-up is of Karras et al. 2020b.

    Args:
        half_life_kimg: thousands of images after which an old value counts half.
        rampup: the half-life is at most this share of the images seen; 0 for no ramp-up.
    """

    def __init__(self, generator: Generator, half_life_kimg: Scheduled, rampup: float):
        self.network = copy.deepcopy(generator).eval().requires_grad_(False)
        self.half_life_kimg = half_life_kimg
        self.rampup = rampup

    def decay(self, nimg: int, batch: int) -> float:
        """Weight of the old average when `batch` images follow the first `nimg`; 0 copies."""
        half_life = value_at(self.half_life_kimg, nimg) * 1000
        if self.rampup:
            half_life = min(half_life, nimg * self.rampup)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, generator: Generator, nimg: int, batch: int) -> None:
        """Move towards the generator; buffers (such as the mean of w) are copied."""
        old: list[Tensor] = list(self.network.parameters())
        new: list[Tensor] = list(generator.parameters())
        torch._foreach_lerp_(old, new, 1 - self.decay(nimg, batch))
        restore_buffers(self.network, dict(generator.named_buffers()))

    def whole(self) -> Generator | None:
        """The network, on the device, at least on rank 0. All ranks must call it."""
        return self.network

    def tensors(self) -> dict[str, Tensor | Sharded]:
        """Parameters and buffers by name."""
        return dict(self.network.state_dict())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.network.load_state_dict(dict(tensors))

    def checksum(self) -> float:
        """A number that is the same on all ranks if they hold the same average."""
        return sum_of_bits(self.network.parameters())


class ShardedAverage(AveragedGenerator):
    """The same average, of which each rank holds a part, on the device or on the host.

    Args:
        average: of which to take over everything.
        learner: of the generator; it says which part of each parameter belongs to this rank.
        device: where the parts are.
    """

    def __init__(self, average: AveragedGenerator, learner: Learner, device: torch.device):
        self.half_life_kimg, self.rampup = average.half_life_kimg, average.rampup
        self.network = average.network.to("meta")  # shapes alone
        self._learner = learner
        self._starts = {name: start for name, _, start in learner.local()}
        self._parts = {name: part.to(device, copy=True) for name, part, _ in learner.local()}
        self._buffers = {name: buffer.clone() for name, buffer in learner.network.named_buffers()}

    @torch.no_grad()
    def update(self, generator: Generator, nimg: int, batch: int) -> None:
        new = [part.to(self._parts[name].device) for name, part, _ in self._learner.local()]
        torch._foreach_lerp_(list(self._parts.values()), new, 1 - self.decay(nimg, batch))
        for name, buffer in generator.named_buffers():
            self._buffers[name].copy_(buffer)

    @torch.no_grad()
    def whole(self) -> Generator | None:
        ranks = self._learner.ranks
        network = copy.deepcopy(self.network).to_empty(device=ranks.device) if ranks.is_main else None
        values = network.state_dict() if network is not None else {}
        for name in self._parts:  # one at a time, on all ranks
            assembled = self._assemble(name)
            if network is not None:
                values[name].copy_(assembled)
        if network is not None:
            restore_buffers(network, self._buffers)
        return network

    def tensors(self) -> dict[str, Tensor | Sharded]:
        shapes = self._learner.shapes
        parts: dict[str, Tensor | Sharded] = {
            name: Sharded(shapes[name], torch.float32, lambda name=name: self._assemble(name))  # type: ignore[misc]
            for name in self._parts
        }
        return {**parts, **self._buffers}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, part in self._parts.items():
            start = self._starts[name]
            part.copy_(tensors[name].flatten()[start:start + len(part)])
        for name, buffer in self._buffers.items():
            buffer.copy_(tensors[name])

    def checksum(self) -> float:
        return 0.0  # no rank holds what another has, too

    def _assemble(self, name: str) -> Tensor:
        learner = self._learner
        return assemble(learner.shapes[name], self._parts[name], self._starts[name], learner.ranks)


def restore_buffers(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set all buffers, to values that fit."""
    for name, buffer in network.named_buffers():
        buffer.copy_(tensors[name])
