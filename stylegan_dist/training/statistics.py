"""What has been measured since the last tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class TickStatistics:
    """Sums of statistics on the device, which nobody waits for until the tick.

    Part of the saved state, so that the record of a tick does not show whether a restart fell into it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}  # 0 for a value that is reported as a sum

    def add(self, values: Mapping[str, Tensor], mean: bool = True) -> None:
        """Add scalars; a tick reports their mean, or their sum."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + mean

    def take(self) -> dict[str, float]:
        """The means and sums since the last call. Waits for the device."""
        if not self._sums:
            return {}
        values = torch.stack([value.double() for value in self._sums.values()]).tolist()
        taken = {name: value / max(self._counts[name], 1) for name, value in zip(self._sums, values, strict=True)}
        self._sums.clear()
        self._counts.clear()
        return taken

    def facts(self) -> dict[str, list]:
        """name -> [sum, count], for state.json; a float32 goes through JSON unchanged."""
        return {name: [value.item(), self._counts[name]] for name, value in self._sums.items()}

    def restore(self, facts: Mapping[str, Sequence], device: torch.device) -> None:
        """The inverse of `facts`."""
        self._sums = {name: torch.tensor(value, device=device) for name, (value, _) in facts.items()}
        self._counts = {name: count for name, (_, count) in facts.items()}
