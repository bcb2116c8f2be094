"""Perceptual path lengths: linear generators, any step, batches, trimming."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import normals

from stylegan_dist.errors import InputError
from stylegan_dist.metrics import PathLength, path_lengths, trimmed_path_length

PIXELS = (3, 4, 4)
MATRIX = normals(0, math.prod(PIXELS), 8)


def linear(w: torch.Tensor) -> torch.Tensor:
    return (w @ MATRIX.to(w.dtype).T).view(-1, *PIXELS)


def mean_square(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().mean((1, 2, 3))


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("t", [0, 0.3, "all"])
def test_linear_generator(epsilon: float, t: float | str):
    """|A (w1 - w0)|^2 / P for each pair, P pixel values; 2 |A|_F^2 / P in the mean."""
    w0, w1 = normals(1, 2000, 8), normals(2, 2000, 8)
    place = torch.linspace(0, 1, 2000) if t == "all" else t
    found = path_lengths(w0, w1, linear, mean_square, place, epsilon)
    exact = ((w1 - w0) @ MATRIX.T).square().mean(1)
    assert torch.allclose(found, exact, rtol=1e-7)
    expected = 2 * float(MATRIX.square().sum()) / math.prod(PIXELS)
    score = trimmed_path_length(found, 0, 100)
    assert score.value == pytest.approx(expected, abs=4 * score.error)
    assert score.kept == 2000
    assert score.error == pytest.approx(float(found.std()) / math.sqrt(2000), rel=1e-9)


def test_single_precision():
    """The rounding of images of size 1 is 1e-7, that of a step of 1e-4 then 1e-3: hardly anything in the mean of squares."""
    w0, w1 = normals(1, 2000, 8).float(), normals(2, 2000, 8).float()
    exact = float(((w1 - w0).double() @ MATRIX.T).square().mean())
    assert float(path_lengths(w0, w1, linear, mean_square).mean()) == pytest.approx(exact, rel=1e-3)


def test_batches_and_layers():
    w0, w1 = normals(3, 30, 5, 8), normals(4, 30, 5, 8)  # one w for each layer

    def generate(w: torch.Tensor) -> torch.Tensor:
        assert w.shape[1:] == (5, 8)
        return torch.stack([linear(one).sum(0) for one in w])

    whole = path_lengths(w0, w1, generate, mean_square)
    parts = [path_lengths(a, b, generate, mean_square) for a, b in zip(w0.split(7), w1.split(7), strict=True)]
    assert torch.equal(whole, torch.cat(parts))


def test_percentiles():
    values = torch.from_numpy(np.random.default_rng(0).permutation(1001).astype(np.float64))
    found = trimmed_path_length(values)
    assert found.kept == 981  # 10, ..., 990
    assert found.value == 500
    data = normals(5, 777).square()
    low, high = np.percentile(data, 1, method="lower"), np.percentile(data, 99, method="higher")
    expected = data[(data >= low) & (data <= high)].mean()
    found = trimmed_path_length(data)
    assert found.value == pytest.approx(float(expected), rel=1e-12)
    assert found == trimmed_path_length(data.flip(0)), "whatever the order"
    assert trimmed_path_length(torch.tensor([1.0, 3.0])) == PathLength(2, pytest.approx(1), 2)


def test_refused():
    w = normals(6, 4, 8)
    with pytest.raises(ValueError, match="one shape"):
        path_lengths(w, w[:3], linear, mean_square)
    with pytest.raises(ValueError, match="epsilon"):
        path_lengths(w, w, linear, mean_square, epsilon=0)
    with pytest.raises(ValueError, match="quantised"):
        path_lengths(w, w, lambda w: linear(w).byte(), mean_square)
    with pytest.raises(ValueError, match="distances"):
        path_lengths(w, w, linear, lambda a, b: (a - b).square().mean())
    with pytest.raises(ValueError, match="percentiles"):
        trimmed_path_length(torch.ones(9), 99, 1)
    with pytest.raises(InputError, match="finite"):
        trimmed_path_length(torch.tensor([1.0, torch.nan]))
    with pytest.raises(InputError, match="at least 2"):
        trimmed_path_length(torch.ones(1))
