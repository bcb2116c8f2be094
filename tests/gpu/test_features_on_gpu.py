"""Feature networks on a GPU: near those of the CPU, and the same bits in every batch."""

from __future__ import annotations

import pytest
import torch
from feature_files import random_network

from stylegan_dist.features.registry import NETWORKS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "clip"])
def test_features_on_a_gpu(name):
    some = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    there = random_network(name, "cuda")
    together = there(some)
    assert torch.equal(together, there(some.flip(0)).flip(0))
    assert torch.equal(together[3:4], there(some[3:4]))
    assert torch.equal(together, there(some.cuda()))
    distance = there.distance(some[:4], some[4:8])
    assert torch.equal(distance[1:2], there.distance(some[1:2], some[5:6]))
    if name != "dinov2-l":
        here = random_network(name)
        torch.testing.assert_close(together[:2].cpu(), here(some[:2]), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(distance[:2].cpu(), here.distance(some[:2], some[4:6]), rtol=1e-2, atol=1e-3)
