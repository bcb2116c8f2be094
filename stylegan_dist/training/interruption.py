"""A polite stop: the first SIGTERM or Ctrl-C asks the run to save its state and end."""

from __future__ import annotations

import signal


class StopRequest:
    """Remembers that this process was asked to stop. A second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, _frame: object) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def close(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
