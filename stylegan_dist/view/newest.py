"""Work of which only the newest request counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


class Newest:
    """Does one piece of work at a time. Of those that wait meanwhile, the newest alone gets its turn.

    All work is done by one thread: PyTorch starts threads of its own for each that computes.

    Attributes:
        asked: requests so far.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._busy = False
        self._changed = threading.Condition()
        self._worker = ThreadPoolExecutor(1, "drawing")

    def run(self, work: Callable[[], _T]) -> _T | None:
        """The result of `work`, or None at once where a newer request has come while this one waited. Raises what it raises."""
        with self._changed:
            self.asked += 1
            mine = self.asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy or mine != self.asked)
            if mine != self.asked:
                return None
            self._busy = True
        try:
            return self.always(work)
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def always(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, which no newer request replaces. Raises what it raises."""
        return self._worker.submit(work).result()

    def close(self) -> None:
        """Wait for the work under way."""
        self._worker.shutdown()
