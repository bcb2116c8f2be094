"""Ranks that keep the others waiting: their own time for a step, and when a person hears of them."""

from __future__ import annotations

import time

import pytest
import torch

from stylegan_dist.engine import preflight
from stylegan_dist.engine.preflight import measure_compute
from stylegan_dist.errors import InputError
from stylegan_dist.ranks import Ranks
from stylegan_dist.training.timing import SHOWN_RANKS, PhaseTimer, SlowRanks

HOSTS = ["a", "a", "b", "b"]


def warned(slow: SlowRanks, *milliseconds: float | None) -> str:
    return slow.look([None if value is None else value / 1000 for value in milliseconds])[1]


def ready(hosts: list[str] = HOSTS, device_type: str = "cuda") -> SlowRanks:
    slow = SlowRanks(hosts, device_type)
    assert not warned(slow, *[100.0] * (len(hosts) - 1), 900), "the first steps do not count"
    return slow


def test_own_time_ends_where_the_others_are_waited_for():
    timer = PhaseTimer(torch.device("cpu"))
    for name in ("g", "d"):
        with timer(name):
            time.sleep(0.01)
            timer.computed()
            time.sleep(0.3)
    means = timer.take()
    assert timer.own_seconds is not None
    assert 0.02 <= timer.own_seconds <= sum(means.values()) - 0.6
    with timer("g"):
        pass
    timer.take()
    assert timer.own_seconds is None, "an engine that cannot tell"


def test_a_table_slowest_first():
    lines = warned(ready(), 100, 100, 150, 105).splitlines()
    assert lines[0].startswith("1 of 4 ranks")
    assert lines[1].split() == ["rank", "2", "b", "150.0", "ms"]
    assert [line.split()[1] for line in lines[1:]] == ["2", "3", "0", "1"]


def test_again_only_for_other_ranks():
    slow = ready()
    assert warned(slow, 100, 100, 150, 100)
    assert not warned(slow, 100, 100, 170, 100)
    assert not warned(slow, 100, 100, 100, 100)
    assert not warned(slow, 100, 100, 150, 100), "one that comes and goes is told once"
    assert warned(slow, 100, 100, 150, 150)


def test_of_two_the_slower_one():
    assert "rank 1" in warned(ready(["a", "b"]), 100, 115).splitlines()[1]


@pytest.mark.parametrize(("device_type", "told"), [("cpu", False), ("cuda", True)])
def test_a_difference_that_nobody_notices(device_type: str, told: bool):
    assert bool(warned(ready(device_type=device_type), 20, 20, 20, 40)) == told


def test_no_more_than_so_many_lines():
    lines = warned(ready(["a"] * 40), *[100.0] * 39, 150).splitlines()
    assert len(lines) == 1 + SHOWN_RANKS + 1
    assert "24" in lines[-1]


def test_metrics_are_seconds_and_absent_where_unknown():
    metrics, _ = SlowRanks(HOSTS, "cpu").look([0.1, 0.2, 0.1, 0.1])
    assert metrics == {"time/rank_step_slowest": 0.2, "time/rank_step_median": 0.1, "time/rank_step_fastest": 0.1,
                       "time/rank_step/0": 0.1, "time/rank_step/1": 0.2, "time/rank_step/2": 0.1, "time/rank_step/3": 0.1}
    many, _ = SlowRanks(["a"] * 65, "cpu").look([0.1] * 65)
    assert sorted(many) == ["time/rank_step_fastest", "time/rank_step_median", "time/rank_step_slowest"]
    assert SlowRanks(HOSTS, "cpu").look([None] * 4) == ({}, "")
    assert SlowRanks(["a"], "cpu").look([0.1]) == ({}, "")


class Four(Ranks):
    """Rank 0 of four; the others say what they are told to."""

    def __init__(self, *others: list):
        super().__init__()
        self.others = others

    def gather(self, value: object) -> list:
        return [value, *self.others]


def test_compute_of_this_machine():
    compute = measure_compute(Ranks(), ["a"])
    assert compute.rates[0] > 1e6
    assert not compute.slow
    assert compute.describe().count("TFLOP/s") == 1


def test_a_slow_device_is_named():
    compute = measure_compute(Four([1e18, True], [0.4e18, True], [1e18, True]), HOSTS)
    assert "rank 2 (b)" in compute.slow
    assert "rank 0 (a)" in compute.slow, "which is far slower still"
    assert compute.slow.index("rank 0") < compute.slow.index("rank 2")
    assert "rank 1" not in compute.slow


def test_a_device_that_computes_wrong_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"rank 3 \(b\)"):
        measure_compute(Four([1e11, True], [1e11, True], [1e11, False]), HOSTS)
    multiply = torch.mm

    def wrong(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
        multiply(left, right, out=out)
        out[100, 200] += 1

    monkeypatch.setattr(preflight.torch, "mm", wrong)
    with pytest.raises(InputError, match=r"rank 0 \(a\)"):
        measure_compute(Ranks(), ["a"])
