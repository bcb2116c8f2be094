"""The same scores as torch-fidelity's functions on features. Skipped where it cannot be imported."""

from __future__ import annotations

import pytest
import torch
from reference import normals

from stylegan_dist.metrics import frechet_distance, inception_score, kernel_distance, manifold_scores

try:  # beside some builds of torch, torchvision fails with more than ImportError
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
except Exception as error:
    pytest.skip(f"torch-fidelity cannot be imported: {error}", allow_module_level=True)


@pytest.fixture(params=[(200, 16), (700, 64), (40, 64)], ids=str)
def sets(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and generated features with falling spectra."""
    count, width = request.param
    spectrum = torch.arange(1, width + 1, dtype=torch.float64) ** -0.5
    return normals(0, count, width) * spectrum, normals(1, count, width) * spectrum * 1.1 + 0.05


def test_frechet(sets: tuple[torch.Tensor, torch.Tensor]):
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, sets), False)["frechet_inception_distance"]
    # With n <= d their roots of eigenvalues near zero have half of the digits.
    assert frechet_distance(*sets) == pytest.approx(theirs, rel=1e-9 if len(sets[0]) > sets[0].shape[1] else 1e-6)


def test_kernel(sets: tuple[torch.Tensor, torch.Tensor]):
    theirs = kid_features_to_metric(*sets, kid_subsets=1, kid_subset_size=len(sets[0]), verbose=False)
    assert kernel_distance(*sets).value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall(sets: tuple[torch.Tensor, torch.Tensor], k: int):
    real, generated = sets
    for a, b in ((real, generated), (real, real), (real, real + 100)):
        theirs = prc_features_to_metric(b, a, prc_neighborhood=k, prc_batch_size=64, save_cpu_ram=False, verbose=False)
        ours = manifold_scores(a, b, k)
        assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_inception(splits: int):
    logits = 3 * normals(2, 333, 20)
    theirs = isc_features_to_metric(logits, splits, shuffle=False)
    ours = inception_score(logits, splits)
    expected = theirs["inception_score_mean"], theirs["inception_score_std"]
    assert (ours.value, ours.spread) == pytest.approx(expected, rel=1e-9)
