"""Numbers as people read them, thinning, and axes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylegan_dist.report.axes import axis_of, linear_ticks
from stylegan_dist.report.curves import Chart, Series, drawable
from stylegan_dist.report.thinning import evenly, thin, trend
from stylegan_dist.report.values import kimg, number, when

FINITE = st.floats(-1e300, 1e300)
ANY = st.floats()


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (1, "1"), (-0.5, "\u22120.5"), (1234.5678, "1,235"), (0.00123456, "0.001235"), (1.5e-7, "1.5e-7"), (2e9, "2e9"),
    (None, "\u2013"), (math.nan, "NaN"), (math.inf, "\u221e"), (9.99999, "10"), (100.0, "100"), (21.4, "21.4"),
])
def test_numbers(value, text):
    assert number(value) == text


def test_images_and_times():
    assert kimg(4_200_000) == "4,200"
    assert kimg(16) == "0.016"
    assert when(0) == "1970-01-01 00:00 UTC"
    assert when(1e300) == when(math.nan) == when(None) == "\u2013"


@given(st.integers(0, 3000), st.integers(2, 500))
def test_evenly(count, most):
    chosen = evenly(count, most)
    assert len(chosen) == len(set(chosen)) == min(count, most)
    assert not chosen or (chosen[0], chosen[-1]) == (0, count - 1)


@given(st.lists(ANY, max_size=400), st.integers(4, 100))
def test_thinning_keeps_ends_and_extremes(values, most):
    points = list(enumerate(values))
    kept = thin(points, most)
    assert len(kept) <= max(1.5 * most + 2, len(points) if len(points) <= most else 0)
    assert {at for at, _ in kept} <= {at for at, _ in points}
    assert [at for at, _ in kept] == sorted(at for at, _ in kept)
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        still = [value for _, value in kept if math.isfinite(value)]
        assert (min(still), max(still)) == (min(finite), max(finite))
    if points:
        assert (kept[0][0], kept[-1][0]) == (points[0][0], points[-1][0])


@given(st.lists(ANY, min_size=120, max_size=400))
def test_the_course_stays_within_the_values(values):
    finite = [value for value in values if math.isfinite(value)]
    for _, value in trend(list(enumerate(values)), 60):
        assert math.isfinite(value)
        assert min(finite) - abs(min(finite)) * 1e-9 <= value <= max(finite) + abs(max(finite)) * 1e-9


@given(st.lists(ANY, max_size=80), st.sampled_from(["linear", "log", "auto"]), st.booleans())
def test_every_axis_has_a_range_and_ticks_in_it(values, scale, from_zero):
    axis = axis_of(Chart("x", [Series("y", list(enumerate(values)), 0, 0)], scale, from_zero=from_zero))
    assert axis.low < axis.high
    assert math.isfinite(axis.low)
    assert math.isfinite(axis.high)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 14
    span = axis.high - axis.low
    assert all(axis.low - 1e-6 * span <= tick <= axis.high + 1e-6 * span for tick in ticks if math.isfinite(span))
    assert all(math.isfinite(axis.place(value)) for value in values if drawable(value))


@pytest.mark.parametrize(("low", "high", "most", "ticks"), [
    (0, 600, 4, [0, 200, 400, 600]), (0.5, 1.8, 6, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]), (3, 3, 5, [3]),
])
def test_ticks_are_round(low, high, most, ticks):
    assert linear_ticks(low, high, most) == pytest.approx(ticks)
