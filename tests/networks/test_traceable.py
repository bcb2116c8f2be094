"""torch.export as the first thing in a process, for any batch; what follows in that process is none the worse for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
NETWORKS = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests/helpers")!r})
import torch
from torch import nn
from torch.export import Dim, export
import reference
from small_networks import stylegan2_discriminator, stylegan2_generator
from stylegan_dist.networks.layers import Precision
from stylegan_dist.families.stylegan2.networks import Discriminator, Generator
from stylegan_dist.objective.penalties import gradient_penalty
from stylegan_dist.ops import native

native.select(sys.argv[1])
small = dict(channel_base=96, channel_max=8, mapping_layers=1, precision=Precision(channels_last=True, clamp=256.0))
g = reference.randomize(stylegan2_generator(8, 3, 3, z_dim=8, w_dim=8, **small), 1)
d = reference.randomize(stylegan2_discriminator(8, 3, 3, mbstd_group=2, **small), 2)

class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = g
    def forward(self, z, label, psi):
        return self.g(z, label, self.g.synthesis.constant_noise(), psi)

class Synthesis(nn.Module):
    def __init__(self):
        super().__init__()
        self.synthesis = g.synthesis
    def forward(self, ws):
        return self.synthesis(ws, self.synthesis.constant_noise())

def labels(n):
    return torch.arange(n) % 3

def check(network, inputs, shapes, sizes):
    program = export(network, inputs(sizes[0]), dynamic_shapes=shapes)
    with torch.no_grad():
        for n in sizes:
            assert torch.equal(program.module()(*inputs(n)), network(*inputs(n))), (type(network), n)

n = Dim("n", max=64)
"""
GENERATOR = """
check(Pictures(), lambda n: (reference.normals(3, n, 8).float(), labels(n), torch.tensor(0.7)), ({0: n}, {0: n}, None), (3, 5))
check(g.mapping, lambda n: (reference.normals(3, n, 8).float(), labels(n)), ({0: n}, {0: n}), (3, 5))
check(Synthesis(), lambda n: (reference.normals(3, n, g.num_ws, 8).float(),), ({0: n},), (3, 5))
"""
DISCRIMINATOR = """
groups = 2 * Dim("groups", min=2, max=32)
check(d, lambda n: (reference.normals(3, n, 3, 8, 8).float(), labels(n)), ({0: groups}, {0: groups}), (4, 6))
"""
INFERENCE = """
with torch.inference_mode():
    d(g(reference.normals(3, 4, 8).float(), labels(4), g.synthesis.constant_noise()), labels(4))
"""
TRAINING = """
x = reference.normals(4, 4, 3, 8, 8).float().requires_grad_(True)
gradient_penalty(d(x, labels(4)), x).mean().backward()
assert d.conv.weight.grad.any()
d(g(reference.normals(5, 4, 8).float(), labels(4)), labels(4)).sum().backward()
assert all(p.grad is not None and type(p.grad) is torch.Tensor for p in g.synthesis.b8.conv0.parameters() if p.numel() > 1)
"""


@pytest.mark.parametrize("path", ["reference", "auto"])
@pytest.mark.parametrize("first", [GENERATOR, DISCRIMINATOR, INFERENCE], ids=["generator", "discriminator", "inference"])
def test_first_thing_in_a_process(first: str, path: str):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", NETWORKS + first + TRAINING, path],
                         capture_output=True, text=True, timeout=1500, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
