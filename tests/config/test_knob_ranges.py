"""Every number has a range, which holds when it is set, and when a rule has chosen it."""

from __future__ import annotations

import dataclasses
import math
import re
import typing

import pytest

from stylegan_dist.config import Change, Config, changes_of, describe, load_config
from stylegan_dist.config.knobs import knob
from stylegan_dist.config.loading import check_ranges
from stylegan_dist.errors import InputError
from stylegan_dist.randomness import SEED_LIMIT
from stylegan_dist.ranges import MOST_SEED, Range


def numbers(node, prefix: str = "") -> dict[str, tuple[type, Range | None]]:
    """Dotted key -> int, float or list, and range, of every knob that takes a number."""
    found = {}
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value, key = getattr(node, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            found |= numbers(value, key + ".")
            continue
        kinds = {hints[field.name], *typing.get_args(hints[field.name])}
        for kind in (int, float):
            if kind in kinds:
                found[key] = (list if typing.get_origin(hints[field.name]) is list else kind, field.metadata["range"])
    return found


NUMBERS = numbers(Config())


def test_every_number_has_a_range():
    assert len(NUMBERS) > 55
    assert [key for key, (_, span) in NUMBERS.items() if span is None] == []
    assert all(math.isfinite(span.most) and math.isfinite(span.least if span.above is None else span.above)
               for _, span in NUMBERS.values())
    assert MOST_SEED == SEED_LIMIT - 1


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_outside_is_refused_and_the_bounds_are_not(key):
    kind, span = NUMBERS[key]
    step = 1 if kind is int else 1e-9 * max(1, span.most)
    lowest = span.least if span.above is None else math.nextafter(span.above, math.inf)
    form = (lambda number: f"{key}=[{number!r}, {number!r}]") if kind is list else (lambda number: f"{key}={number!r}")
    for number in (lowest, span.most):
        load_config(None, [form(number)])
    for number in (-1, lowest - step, span.most + step, 10**30, 1e300 if kind is float else 10**300):
        with pytest.raises(InputError, match=rf"^{key}=.* on the command line must be .*{re.escape(str(span))}") as caught:
            load_config(None, [form(number)])
        assert "\n" not in str(caught.value)


def test_the_list_of_knobs_tells_the_ranges():
    said = {key: doc for key, _, doc in describe()}
    assert "from 0 to 256" in said["data.workers"]
    assert "above 0, at most 1e+06" in said["run.timeout"] or "above 0, at most 1000000" in said["run.timeout"]


def test_what_a_program_sets_is_checked_too():
    config = Config()
    check_ranges(config)
    config.run.batch = 0
    with pytest.raises(InputError, match=r"run\.batch=0 must be from 1"):
        check_ranges(config)


def test_a_range_has_two_bounds():
    for bounds in ({"least": 0}, {"most": 1}, {"least": 0, "above": 0, "most": 1}):
        with pytest.raises(TypeError):
            knob(1, Change.TOLD, "some number", **bounds)
    assert math.nan not in Range(0, 1)
    assert 0 not in Range(above=0, most=1)


def test_every_knob_says_whether_it_may_change():
    with pytest.raises(TypeError):
        knob(1, doc="a knob that does not say")
    changes = changes_of(Config())
    assert all(isinstance(change, Change) for change in changes.values())
    assert changes["run.seed"] is changes["generator.z_dim"] is changes["optim.d.name"] is Change.FIXED
    assert changes["run.batch"] is changes["loss.r1_gamma"] is changes["optim.g.lr"] is Change.TOLD
    assert changes["run.kimg"] is changes["monitor.tick_kimg"] is Change.SILENT
    assert [key for key, change in changes.items() if change is Change.PER_RANK] == [
        "run.threads", "data.shards", "data.cache", "data.cache_gb", "data.workers", "data.prefetch"]
