"""Each rank tells through the store of the process group where it is, so that a rank that waits can name the late one."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from stylegan_dist.engine.rendezvous import name_ranks, open_store, patience
from stylegan_dist.engine.stacks import run_bounded

BEAT_SECONDS = 2.0
ANSWER_SECONDS = 5.0  # for the store
_GONE = "gone"  # a key that is there when a rank has failed or given up


class Watch:
    """Tells every two seconds where this rank is; a thread does it, so that it is told also while the rank waits.

    Args:
        env: with RANK, MASTER_ADDR and MASTER_PORT.
        hosts: the machines of all ranks, in their order.
        where: what this rank is doing, images seen, stages and collectives begun, and since when (time.monotonic).
        timeout: run.timeout.
    """

    def __init__(self, env: Mapping[str, str], hosts: Sequence[str], where: Callable[[], tuple[str, int, int, float]],
                 timeout: float):
        self.rank, self._hosts, self._where = int(env["RANK"]), hosts, where
        store = open_store(env, patience(timeout), may_serve=False)  # many ranks connect at once
        store.set_timeout(timedelta(seconds=ANSWER_SECONDS))
        self._store = dist.PrefixStore("at", store)
        self._found: tuple[float, list[int], str] = (-1.0, [], "")  # who was late in the wait that began then
        self._last = ""  # what ended this rank
        self._gave_up = self._failed = False
        self._asked, self._others_gone = False, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="watch")
        self._thread.start()

    def end(self, reason: str, gave_up: bool = False, failed: bool = True) -> None:
        """Tell the others that this rank ends, and why; or that it has given up waiting for them.

        Args:
            failed: this is not the end of a run.
        """
        self._last, self._gave_up, self._failed = reason, gave_up, failed
        self._ended.set()
        self._thread.join(ANSWER_SECONDS)

    def _work(self) -> None:
        beat = 0
        try:
            while not self._ended.wait(BEAT_SECONDS if beat else 0.0):
                self._tell(beat)
                beat += 1
                if self._asked:
                    self._others_gone = self._store.check([_GONE])
            self._tell(beat)
            if self._failed:
                self._store.set(_GONE, "")
        except RuntimeError:  # the store is gone, with the rank or the launcher that served it
            self._others_gone = True

    def _tell(self, beat: int) -> None:
        doing, nimg, begun, since = self._where()
        self._store.set(str(self.rank), json.dumps({
            "beat": beat, "doing": doing, "at": [nimg, begun], "seconds": time.monotonic() - since, "process": os.getpid(),
            "ended": self._last, "gave_up": self._gave_up,
        }))

    def others_gone(self) -> bool:
        """Whether a rank has failed or given up, as far as this one has heard. To be asked again and again."""
        self._asked = True
        return self._others_gone

    def who_is_late(self, closed: bool) -> str:
        """In words, in seconds.

        Args:
            closed: a connection was closed, so a rank that does not answer has ended.
        """
        *_, since = self._where()
        if closed and self._found[0] == since:  # those who have given up since then have closed the connection
            return self._found[2]
        return self.look(closed)[1]

    def look(self, closed: bool = False) -> tuple[list[int], str]:
        """The ranks that the others wait for, if any, and what is known of them, in words; in seconds."""
        *_, since = self._where()
        found: list[tuple[list[int], str]] = []
        run_bounded(lambda: found.append(self._look(closed)), 3 * BEAT_SECONDS + ANSWER_SECONDS)
        late, text = found[0] if found else ([], "")
        if not text and self._found[0] != since:
            first = f"{name_ranks([0], self._hosts)}, or the launcher there, through which the ranks keep in touch,"
            late, text = [0], f"{first} {'has ended' if found else 'does not answer'}"
        elif not text:
            _, late, text = self._found
        if late:
            self._found = since, late, text
        return late, text

    def _look(self, closed: bool) -> tuple[list[int], str]:
        """Nobody and nothing where the store is gone. Waits without a bound for one that does not answer."""
        try:
            before = reports = self._read()
            if not any(report["ended"] and not report["gave_up"] for report in before):
                time.sleep(2.5 * BEAT_SECONDS)
                reports = self._read()
        except RuntimeError:
            return [], ""
        others = [rank for rank, report in enumerate(reports) if rank != self.rank and not report["gave_up"]]
        if ended := [rank for rank in others if reports[rank]["ended"]]:
            return ended, "; ".join(f"{self._name(rank, reports)} has ended: {reports[rank]['ended']}" for rank in ended[:3])
        if silent := [rank for rank in others if reports[rank]["beat"] == before[rank]["beat"]]:
            how = "has ended or was killed" if closed else "does not answer: it is stopped, or its machine is down"
            return silent, "; ".join(f"{self._name(rank, reports)} {how}; when last heard of it was "
                                     f"{self._doing(reports[rank])}" for rank in silent[:3])
        least = min(report["at"] for report in reports)
        late = [rank for rank, report in enumerate(reports) if report["at"] == least]
        if len(late) == len(reports):
            return [], "all ranks answer, and no other is behind: see whether the network between their machines is well"
        remedy = " (where that may take so long, set a larger run.timeout or run.hang_seconds)"
        return late, "; ".join(f"{self._name(rank, reports)} is late: it is {self._doing(reports[rank])}"
                               for rank in late[:3]) + remedy

    def _read(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self._store.multi_get([str(rank) for rank in range(len(self._hosts))])]

    def _name(self, rank: int, reports: Sequence[Mapping[str, Any]]) -> str:
        return f"rank {rank} ({self._hosts[rank]}, process {reports[rank]['process']})"

    @staticmethod
    def _doing(report: Mapping[str, Any]) -> str:
        return f"{report['doing']} at {report['at'][0]} images, for {report['seconds']:.0f} s"


def connection_closed(reason: str) -> bool:
    """Whether a backend's words say that the other side is gone."""
    return any(word in reason.lower() for word in ("closed", "reset", "broken pipe", "refused"))

