"""Who keeps the others waiting, as the ranks tell each other: the one that is behind, silent, or has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from stylegan_dist.engine import watch
from stylegan_dist.engine.watch import Watch
from stylegan_dist.ranks import Ranks

HOSTS = ["a", "a", "b", "b"]


class Rank:
    """One of four, in this process. After its first beat it beats when it is told to, so that nothing depends on the clock."""

    def __init__(self, number: int, port: int):
        self.ranks = Ranks(number, len(HOSTS))
        env = {"RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.watch = Watch(env, HOSTS, self.ranks.where, 600)
        self.beats, self.silent = 0, False

    def beat(self, _seconds: float) -> None:
        if not self.silent and not self.watch._ended.is_set():
            self.beats += 1
            self.watch._tell(self.beats)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Rank]]:
    monkeypatch.setattr(watch, "BEAT_SECONDS", 600.0)
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 60.0)
    server = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    found = [Rank(number, server.port) for number in range(len(HOSTS))]
    beat_all = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: [rank.beat(seconds) for rank in found])
    monkeypatch.setattr(watch, "time", beat_all)
    yield found
    for rank in found:
        rank.watch.end("")


def test_the_one_that_waits_for_data(ranks: list[Rank]):
    """Where a library sums the gradients, which does not count for us."""
    for number, rank in enumerate(ranks):
        rank.ranks.enter("waiting for data", 8)
        if number != 2:
            rank.ranks.enter("training", 8)
    ranks[2].ranks.describe_stage("waiting for reader 1 of 2")
    text = ranks[0].watch.who_is_late(closed=False)
    assert text.startswith("rank 2 (b, process ")
    assert "late" in text
    assert "waiting for reader 1 of 2 at 8 images" in text
    assert "run.timeout" in text, "it may be well, and slow"
    assert "rank 1" not in text


def test_one_that_has_ended(ranks: list[Rank]):
    ranks[1].watch.end("out of memory")
    text = ranks[0].watch.who_is_late(closed=True)
    assert text.startswith("rank 1 (a, process ")
    assert text.endswith("has ended: out of memory")


@pytest.mark.parametrize("gave_up", [False, True])
def test_a_silent_one_is_named_and_nobody_else(ranks: list[Rank], gave_up: bool):
    """Also when somebody who missed it has ended before."""
    ranks[2].silent = True
    if gave_up:
        ranks[0].watch.end("lost contact", gave_up=True)
    text = ranks[1].watch.who_is_late(closed=True)
    assert text.startswith("rank 2 (b, process ")
    assert "has ended or was killed" in text
    assert "rank 3" not in text


def test_the_store_is_gone(ranks: list[Rank], monkeypatch: pytest.MonkeyPatch):
    def fail() -> Callable:
        raise RuntimeError("the connection was closed")

    monkeypatch.setattr(ranks[1].watch, "_read", fail)
    assert "rank 0 (a), or the launcher there" in ranks[1].watch.who_is_late(closed=True)
