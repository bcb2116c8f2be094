"""Mean and covariance: NumPy's, whatever the batches, far from zero, and through a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference import normals
from safetensors.torch import load_file, save_file

from stylegan_dist.errors import InputError
from stylegan_dist.metrics import Moments, MomentSums, features


def in_batches(data: torch.Tensor, size: int) -> Moments:
    sums = MomentSums(data.shape[1])
    for batch in data.split(size):
        sums.add(batch)
    return sums.moments()


def equal(a: Moments, b: Moments) -> bool:
    return a.count == b.count and torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_those_of_numpy(dtype: torch.dtype):
    data = (normals(0, 300, 7) * 3 + 1).to(dtype)
    found = Moments.of(data)
    assert (found.count, found.width, found.mean.dtype) == (300, 7, torch.float64)
    assert np.allclose(found.mean, data.double().mean(0), rtol=1e-13)
    assert np.allclose(found.covariance, np.cov(data.double().numpy(), rowvar=False), rtol=1e-12)
    assert torch.equal(found.covariance, found.covariance.T)


@pytest.mark.parametrize("rows", [1, 3, 64, 2048])
def test_batches_change_no_bit(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "ROWS", 64)
    data = normals(1, 777, 19).float()
    assert equal(in_batches(data, rows), Moments.of(data))
    assert equal(Moments.of(data), Moments.of(data.clone()))


def test_pieces_change_roundings_alone(monkeypatch: pytest.MonkeyPatch):
    data = normals(1, 500, 19)
    whole = Moments.of(data)
    monkeypatch.setattr(features, "ROWS", 7)
    cut = Moments.of(data)
    assert not equal(whole, cut)
    assert torch.allclose(whole.covariance, cut.covariance, rtol=1e-12, atol=1e-14)


def test_far_from_zero():
    """Sums of squares would have lost all digits."""
    data = normals(2, 5000, 3)
    found = Moments.of(data + 1e9)
    expected = Moments.of((data + 1e9) - 1e9)
    assert torch.allclose(found.covariance, expected.covariance, rtol=1e-6)


def test_constant_features():
    found = Moments.of(torch.full((5000, 2), 0.1))
    assert found.covariance.abs().max() < 1e-30


def test_empty_batches_and_few_samples():
    sums = MomentSums(3)
    sums.add(torch.empty(0, 3))
    with pytest.raises(InputError, match="at least 2"):
        sums.moments()
    sums.add(torch.ones(1, 3))
    with pytest.raises(InputError, match="at least 2"):
        sums.moments()
    sums.add(torch.zeros(1, 3))
    assert sums.moments().covariance.unique().tolist() == [0.5]
    assert sums.moments().count == 2, "asked twice"


def test_refused():
    with pytest.raises(ValueError, match=r"\[n, 3\]"):
        MomentSums(3).add(torch.ones(2, 4))
    with pytest.raises(InputError, match="finite"):
        Moments.of(torch.tensor([[1.0], [float("nan")]]))


def test_through_a_file(tmp_path: Path):
    moments = Moments.of(normals(3, 40, 5))
    moments.save(tmp_path / "real.safetensors")
    assert equal(Moments.load(tmp_path / "real.safetensors"), moments)
    assert [path.name for path in tmp_path.iterdir()] == ["real.safetensors"]


def test_damaged_files(tmp_path: Path):
    path = tmp_path / "real.safetensors"
    with pytest.raises(OSError, match="real"):
        Moments.load(path)
    Moments.of(normals(3, 40, 5)).save(path)
    good, whole = load_file(path), path.read_bytes()
    for text in (b"", whole[:-1], b"nothing of this kind"):
        path.write_bytes(text)
        with pytest.raises(InputError, match="damaged"):
            Moments.load(path)
    skew = good["covariance"].clone()
    skew[0, 1] += 1
    for change in ({"count": torch.tensor(1)}, {"count": torch.tensor(40.0)}, {"count": torch.tensor([40])},
                   {"mean": torch.zeros(4, dtype=torch.float64)}, {"mean": good["mean"].float()},
                   {"covariance": torch.full((5, 5), torch.nan, dtype=torch.float64)}, {"covariance": skew},
                   {"covariance": -good["covariance"]}, {"more": torch.ones(1)}):
        save_file(good | change, path)
        with pytest.raises(InputError, match="damaged"):
            Moments.load(path)
    save_file({name: value for name, value in good.items() if name != "mean"}, path)
    with pytest.raises(InputError, match="damaged"):
        Moments.load(path)
