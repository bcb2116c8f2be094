"""What a run counts on the device: statistics since the last tick, and steps with values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

WINDOW = 100  # steps that `BrokenSteps` looks back


class TickStatistics:
    """Sums of statistics on the device. Nothing waits for them until the tick.

    They are part of the saved state. The record of a tick therefore does not depend on restarts.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}  # and how many values; 0 for those that are reported as a sum

    def add(self, values: Mapping[str, Tensor], mean: bool = True) -> None:
        """Add scalars; a tick reports their mean, or their sum."""
        for name, value in values.items():
            if name in self._sums:
                before, count = self._sums[name]
                self._sums[name] = before + value, count + mean
            else:
                self._sums[name] = value, int(mean)

    def take(self) -> dict[str, float]:
        """The means and sums since the last call. Waits for the device."""
        if not self._sums:
            return {}
        values = torch.stack([value.double() for value, _ in self._sums.values()]).tolist()
        counts = [max(count, 1) for _, count in self._sums.values()]
        taken = {name: value / count for name, value, count in zip(self._sums, values, counts, strict=True)}
        self._sums.clear()
        return taken

    def facts(self) -> dict[str, list]:
        """name -> [sum, count], for state.json; a float32 goes through JSON unchanged."""
        return {name: [value.item(), count] for name, (value, count) in self._sums.items()}

    def restore(self, facts: Mapping[str, Sequence], device: torch.device) -> None:
        """The inverse of `facts`."""
        self._sums = {name: (torch.tensor(value, device=device), count) for name, (value, count) in facts.items()}


class BrokenSteps:
    """Which of the last `WINDOW` steps had losses or gradients that are not finite. The same on all ranks, and saved."""

    def __init__(self, device: torch.device):
        self._steps = torch.zeros(WINDOW, device=device)  # the last one at the end

    def add(self, phases: Sequence[Tensor]) -> None:
        """Add a step by what `PhaseResult.broken` says of its phases. Waits for nothing."""
        self._steps = torch.cat([self._steps[1:], torch.stack(list(phases)).any().to(self._steps).view(1)])

    def count(self) -> Tensor:
        """How many: float32 [], on the device."""
        return self._steps.sum()

    def facts(self) -> list[int]:
        """How many steps ago each was, the oldest first; 0 is the last step."""
        return [WINDOW - 1 - number for number, broken in enumerate(self._steps.tolist()) if broken]

    def restore(self, facts: Sequence[int]) -> None:
        """The inverse of `facts`."""
        steps = torch.zeros(WINDOW)
        steps[[WINDOW - 1 - ago for ago in facts]] = 1
        self._steps.copy_(steps)
