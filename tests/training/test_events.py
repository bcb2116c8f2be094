"""When the loop's events are due."""

from __future__ import annotations

from typing import Literal

import pytest

from stylegan_dist.training.events import Event, is_due


class Fake(Event):
    every_kimg = 0.1

    def __init__(self, before_stop: Literal["as usual", "always", "never"]):
        self.before_stop = before_stop

    def happen(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("before_stop", ["as usual", "always", "never"])
@pytest.mark.parametrize(("before", "nimg", "due"), [
    (0, 8, False), (92, 99, False), (92, 100, True), (99, 107, True), (100, 108, False), (100, 350, True),
])
def test_an_interval_is_crossed(before_stop, before, nimg, due):
    event = Fake(before_stop)
    assert is_due(event, before, nimg, last=False, stopping=False) == due
    when_stopping = {"as usual": due, "always": True, "never": False}[before_stop]
    assert is_due(event, before, nimg, last=False, stopping=True) == when_stopping
    assert is_due(event, before, nimg, last=True, stopping=True)
