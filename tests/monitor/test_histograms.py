import math

import pytest
import torch

from stylegan_dist.monitor.histograms import BINS, histogram_of


def test_finite_values_are_counted():
    histogram = histogram_of(torch.tensor([0.0, 1.0, 1.0, math.nan, math.inf, 64.0]))
    assert (histogram.low, histogram.high) == (0, 64)
    assert histogram.counts == [1, 2, *[0] * (BINS - 3), 1]
    assert len(histogram.edges) == BINS + 1


@pytest.mark.parametrize("value", [0.0, 5.0, -1e30, 1e-30])
def test_equal_values(value):
    histogram = histogram_of(torch.full((7,), value))
    assert sum(histogram.counts) == 7
    assert histogram.low < value < histogram.high
    assert (histogram.edges[1:] > histogram.edges[:-1]).all()


@pytest.mark.parametrize("values", [[], [math.nan, math.inf], [-1.7e308, 1.7e308]])
def test_nothing_to_count(values):
    assert histogram_of(torch.tensor(values, dtype=torch.float64)) is None
