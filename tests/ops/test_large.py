"""Tensors of more than 2^31 elements, on machines with less memory: what is not written is mapped, but not there."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from native_cases import needs_native_operators, passes_on_cuda_sources
from torch import Tensor

from stylegan_dist import ops

needs_native_operators()
pytestmark = [pytest.mark.usefixtures("native_everywhere"), pytest.mark.full]

MANY = 2**31
EMULATED = "STYLEGAN_DIST_EMULATE" in os.environ
operators = torch.ops.stylegan_dist


def zeros(*shape: int, layout: str = "nchw") -> Tensor:
    """bfloat16 [N, C, H, W] of pages that the system shares until they are written."""
    n, c, h, w = shape
    x = torch.from_numpy(np.zeros((n, c, h, w) if layout == "nchw" else (n, h, w, c), np.int16)).view(torch.bfloat16)
    assert x.numel() > MANY
    return x if layout == "nchw" else x.permute(0, 3, 1, 2)


@pytest.mark.parametrize(("shape", "layout"), [((1, 1, 2**16, 2**15 + 64), "nchw"), ((2, 1, 2**15, 2**15 + 64), "nchw"),
                                               ((1, 8, 2**14, 2**14 + 64), "nhwc")])
def test_a_filter_reads_the_end(shape, layout):
    """Every 32nd pixel of every 32nd row; the last corner is that of a small image with the same corner."""
    x, size = zeros(*shape, layout=layout), 128
    corner = torch.randn(shape[1], size, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[-1, :, -size:, -size:] = corner
    y = ops.resample2d(x, down=32, padding=(0, 0))
    small = ops.resample2d(corner[None], down=32, padding=(0, 0))
    assert small.any()
    assert torch.equal(y[-1, :, -small.shape[2]:, -small.shape[3]:], small[0])
    assert y.count_nonzero() == small.count_nonzero()


@pytest.mark.skipif(EMULATED, reason="loops over 2^31 elements that the compiler has not made fast")
@pytest.mark.parametrize("layout", ["nchw", pytest.param("nhwc", marks=pytest.mark.exhaustive)])
def test_sums_reach_the_end(layout):
    """The gradient of weights of the first layer, and colours of the last: large tensors that are read only."""
    n, c, h, w = shape = 1, 2**13 + 8, 2**9, 2**9
    g = zeros(*shape, layout=layout)
    g[0, -1, -1, -3:] = torch.tensor([1.0, 2.0, 4.0]).bfloat16()
    image = torch.ones(n, 2, h, w).bfloat16()
    image[0, 1, -1, -3:] = torch.tensor([8.0, 16.0, 32.0]).bfloat16()
    affine = torch.zeros(c, 3)
    affine[:, 2] = 1
    _, sums = operators.fromrgb_backward(g, image, affine, None, image, layout == "nhwc", 0.2, 1.0, -1.0)
    assert sums[-1].tolist() == [7.0, 8.0 + 32.0 + 128.0, 7.0]
    assert not sums[:-1].any()
    _, rgb = ops.generator_epilogue(g, ops.Epilogue(torch.ones(n, c), torch.zeros(c)), rgb_weight=torch.ones(n, 1, c))
    assert torch.allclose(rgb[0, 0, -1, -3:], 2**0.5 * torch.tensor([1.0, 2.0, 4.0]))
    assert rgb.count_nonzero() == 3


# ---- results of more than 2^31 elements: 4 GiB that are really written

EXHAUSTIVE = {  # of features u and bias b; the corner of the result is that of a small tensor
    "bias_act": lambda u, b: ops.bias_act(u, b, "lrelu", clamp=2.0),
    "bias_act_backward": lambda u, b: operators.bias_act_backward(u, None, u, None, 0, 0.2, 1.4, -1.0, True)[0],
    "d_filtered": lambda u, b: ops.discriminator_epilogue(u, b, filtered=True)[:, :, :-1, :-1],
    "d_residual": lambda u, b: ops.discriminator_epilogue(u, b, residual=u),
    "d_backward": lambda u, b: operators.discriminator_epilogue_backward(u, u, b, [], 0, 0, 0.2, 1.4, -1.0, True)[0],
    "g_filtered": lambda u, b: ops.generator_epilogue(u, ops.Epilogue(torch.ones(u.shape[:2]), b, filtered=True),
                                                      torch.ones(u.shape[:2]))[0],
    "g_backward": lambda u, b: operators.generator_epilogue_backward(
        u, None, u, torch.ones(len(u), 4, u.shape[1]), None, 0, [], 0.2, 1.4, -1.0)[0],
    "g_double_backward": lambda u, b: operators.generator_epilogue_double_backward(
        u, None, None, torch.ones(len(u), 1, *u.shape[2:]), u, torch.ones(len(u), 5, u.shape[1]), None, 0, [], 0.2, 1.4,
        -1.0)[2],
    "fromrgb": lambda u, b: ops.fromrgb(u[:, :2], torch.ones(u.shape[1], 2, 1, 1), b),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_writes_the_end(name, layout):
    function, size = EXHAUSTIVE[name], 24
    u = zeros(3, 64, 3400, 3400, layout=layout)
    corner = torch.randn(1, 64, size, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    u[-1:, :, -size:, -size:] = corner
    bias = torch.linspace(-1, 1, 64)
    small = function(corner, bias)
    y = function(u, bias)
    assert y.numel() > MANY
    assert torch.equal(y[-1:, :, -size // 2:, -size // 2:], small[:, :, -size // 2:, -size // 2:])


@pytest.mark.full
def test_cuda_sources_on_the_cpu():
    """What a thread of a GPU reads, with the thread bodies compiled as loops."""
    passes_on_cuda_sources(__file__)
