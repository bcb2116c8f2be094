"""The processes of W&B: `wandb.init` starts a service, which starts others. A hung one must not outlive the run."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import psutil

SERVICE = "wandb-core"    # the process that W&B starts, and that does all of its work


class Service:
    """W&B's processes below this one.

    Attributes:
        others: those that were there before, which are not ours.
    """

    def __init__(self) -> None:
        self.others = _processes()
        self._ours: set[psutil.Process] = set()

    def find(self) -> None:
        """Record W&B's processes, because the children of an ended process cannot be found."""
        self._ours |= _processes() - self.others

    def kill(self) -> None:
        """Kill what there is of them; one that is stopped, too."""
        self.find()
        for process in list(self._ours):
            with contextlib.suppress(psutil.Error):  # gone; psutil kills no other process of the same number
                process.kill()
        self._ours.clear()


def disconnect() -> None:
    """Disconnect from W&B's service, dead or alive, so that neither exit hooks nor child processes look for it."""
    # Not an import: there may have been none.
    wandb: Any = sys.modules.get("wandb")
    # A dead service raises here, after W&B has removed its hooks; one that was killed makes W&B want to exit.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def _processes() -> set[psutil.Process]:
    """The services of W&B that this process has started, and their children."""
    found: set[psutil.Process] = set()
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it has just gone
                if child.name().startswith(SERVICE):
                    found |= {child, *child.children(recursive=True)}
    return found
