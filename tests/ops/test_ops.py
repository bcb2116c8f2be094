"""Operations against explicit zero insertion and loops, and their derivatives of first and second order."""

from __future__ import annotations

import itertools
import math

import pytest
import reference
import torch
from native_cases import laid_out
from torch.autograd import gradcheck, gradgradcheck

from stylegan_dist import ops
from stylegan_dist.ops import native
from stylegan_dist.ops.generator_epilogue import FILTER_GAIN, PADDING
from stylegan_dist.ops.resample import conv2d_up

SKEWED = (1.0, 4.0, 2.0, -1.0, 3.0)  # a filter that tells left from right


def naive_resample(x, up, down, padding, gain, taps):
    """Each step of the definition on its own, the convolution one output pixel at a time."""
    n, c, h, w = x.shape
    before, after = padding
    zeros = torch.zeros(n, c, h * up, w * up, dtype=x.dtype)
    zeros[:, :, ::up, ::up] = x
    room = 10  # crop from a frame, so that a negative padding needs no case of its own
    frame = torch.zeros(n, c, h * up + 2 * room, w * up + 2 * room, dtype=x.dtype)
    frame[:, :, room:-room, room:-room] = zeros
    frame = frame[:, :, room - before:room + h * up + after, room - before:room + w * up + after]
    line = torch.tensor(taps, dtype=x.dtype) / sum(taps)
    kernel = torch.outer(line, line) * gain
    size = len(taps)
    rows, columns = frame.shape[2] - size + 1, frame.shape[3] - size + 1
    out = torch.zeros(n, c, rows, columns, dtype=x.dtype)
    for i, j in itertools.product(range(size), repeat=2):
        # a convolution: the last tap meets the first pixel
        out += kernel[size - 1 - i, size - 1 - j] * frame[:, :, i:i + rows, j:j + columns]
    return out[:, :, ::down, ::down]


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (6, 4)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1), (1, 1), (1, 2), (2, 2), (3, 0), (4, 5), (-1, 6), (6, -2)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (3, 2), (4, 3)])
def test_resample2d(up, down, padding, size):
    x = reference.normals(0, 2, 3, *size)
    compared = 0
    for taps in (ops.resample.TAPS, SKEWED):
        if min(size) * up + sum(padding) < len(taps):
            continue
        expected = naive_resample(x, up, down, padding, 1.7, taps)
        out = ops.resample2d(x, up, down, padding, gain=1.7, taps=taps)
        assert reference.difference(out, expected) < 1e-14
        compared += 1
    assert compared


@pytest.mark.parametrize("padding", [(-9, 14), (14, -9)])
@pytest.mark.parametrize("up", [1, 2])
def test_a_crop_of_more_than_there_is_leaves_zeros(up, padding):
    out = ops.resample2d(reference.normals(0, 2, 3, 4, 4), up, 1, padding)
    assert out.shape == (2, 3, 4 * up + 2, 4 * up + 2)
    assert not out.any()


def test_too_few_pixels_for_the_filter():
    assert ops.resample2d(reference.normals(0, 1, 1, 4, 5)).shape == (1, 1, 1, 2)
    with pytest.raises(ValueError, match="3x5 pixels"):
        ops.resample2d(reference.normals(0, 1, 1, 3, 5))


def test_upsample_and_downsample():
    x = reference.normals(0, 2, 3, 6, 8)
    assert reference.difference(ops.upsample2d(x), reference.upsampled(x)) < 1e-14
    assert reference.difference(ops.downsample2d(x), reference.downsampled(x)) < 1e-14
    # Away from the border a constant stays, and a ramp keeps its place: pixel i covers 2i and 2i + 1.
    ramp = torch.arange(8.0).double().expand(1, 1, 8, 8)
    assert ops.upsample2d(ramp)[0, 0, 8, 4:12].tolist() == pytest.approx([(j - 0.5) / 2 for j in range(4, 12)])
    assert ops.downsample2d(ramp)[0, 0, 2, 1:3].tolist() == pytest.approx([2.5, 4.5])


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (4, 6)])
def test_conv2d_resample(kernel, size):
    x, weight = reference.normals(0, 2, 3, *size), reference.normals(1, 5, 3, kernel, kernel)
    assert reference.difference(ops.conv2d_resample(x, weight), reference.same_conv(x, weight)) < 1e-14
    assert reference.difference(ops.conv2d_resample(x, weight, down=2), reference.conv_down(x, weight)) < 1e-14
    if kernel == 3:
        assert reference.difference(conv_up(x, weight), reference.conv_up(x, weight)) < 1e-14


def conv_up(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution of an up-sampled image, by the filter that follows `conv2d_up`."""
    return ops.resample2d(conv2d_up(x, weight), padding=PADDING, gain=FILTER_GAIN)


def test_conv_up_by_hand():
    """A kernel of a single one, up: the up-sampled image moved by one pixel, against the kernel's direction."""
    x = reference.normals(0, 1, 1, 6, 6)
    for i, j in itertools.product(range(3), repeat=2):
        weight = torch.zeros(1, 1, 3, 3).double()
        weight[0, 0, i, j] = 1
        out, up = conv_up(x, weight), ops.upsample2d(x)
        moved = torch.roll(up, (i - 1, j - 1), (2, 3))
        assert reference.difference(out[:, :, 1:-1, 1:-1], moved[:, :, 1:-1, 1:-1]) < 1e-14


def modulated(x: torch.Tensor, weight: torch.Tensor, style: torch.Tensor, up: int = 1) -> torch.Tensor:
    """The whole modulated convolution, filter and demodulation included."""
    x, demodulation = ops.modulated_conv2d(x * style[:, :, None, None], weight, style, up)
    x = ops.resample2d(x, padding=PADDING, gain=FILTER_GAIN) if up == 2 else x
    return x * demodulation[:, :, None, None]


@pytest.mark.parametrize(("kernel", "up"), [(1, 1), (3, 1), (3, 2)])
def test_modulated_conv2d(kernel, up):
    x, weight, style = reference.normals(0, 3, 4, 5, 6), reference.normals(1, 2, 4, kernel, kernel), reference.normals(2, 3, 4)
    assert reference.difference(modulated(x, weight, style, up), reference.modulated_conv(x, weight, style, up)) < 1e-13


def test_demodulation_has_unit_norm_and_survives_zero_styles():
    """Unit normal input, independent pixels: unit variance comes out, whatever the size of weights and styles."""
    x, weight = reference.normals(0, 2, 16, 64, 64), reference.normals(1, 3, 16, 3, 3) * 40
    out = modulated(x, weight, reference.normals(2, 2, 16) * 0.03)
    assert out.std().item() == pytest.approx(1, abs=0.05)
    assert not modulated(x, weight, torch.zeros(2, 16).double()).any()


@pytest.mark.parametrize("activation", ["linear", "lrelu"])
@pytest.mark.parametrize("gain", [1.0, math.sqrt(0.5)])
@pytest.mark.parametrize("clamp", [None, 1.2])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (6, 7)])
def test_bias_act(activation, gain, clamp, shape):
    x, bias = reference.normals(0, *shape) * 2, reference.normals(1, shape[1])
    for b in (bias, None):
        y = x if b is None else x + b[(None, slice(None), *[None] * (len(shape) - 2))]
        y = reference.bounded(reference.lrelu(y) if activation == "lrelu" else y, clamp) * gain
        assert reference.difference(ops.bias_act(x, b, activation, gain, clamp), y) < 1e-14
    assert ops.bias_act(x.bfloat16(), bias.float(), activation, gain, clamp).dtype == torch.bfloat16


def leaf(seed: int, *shape: int) -> torch.Tensor:
    return reference.normals(seed, *shape).requires_grad_(True)


CHECKED = {
    "bias_act": (lambda x, b: ops.bias_act(x, b, "lrelu", 0.7, 1.1), (leaf(0, 2, 3, 3, 3), leaf(1, 3))),
    "linear": (lambda x, b: ops.bias_act(x, b), (leaf(0, 2, 3), leaf(1, 3))),
    "resample": (lambda x: ops.resample2d(x, 2, 1, (2, 1), 4.0), (leaf(0, 1, 2, 3, 4),)),
    "resample_down": (lambda x: ops.resample2d(x, 1, 2, (1, 1)), (leaf(0, 1, 2, 5, 4),)),
    "resample_both": (lambda x: ops.resample2d(x, 2, 3, (-1, 3), taps=SKEWED), (leaf(0, 1, 2, 4, 4),)),
    "conv": (lambda x, w: ops.conv2d_resample(x, w), (leaf(0, 1, 2, 3, 3), leaf(1, 2, 2, 3, 3))),
    "conv_up": (conv_up, (leaf(0, 1, 2, 3, 3), leaf(1, 2, 2, 3, 3))),
    "conv_down": (lambda x, w: ops.conv2d_resample(x, w, down=2), (leaf(0, 1, 2, 4, 4), leaf(1, 2, 2, 3, 3))),
    "conv_down_1x1": (lambda x, w: ops.conv2d_resample(x, w, down=2), (leaf(0, 1, 2, 4, 4), leaf(1, 2, 2, 1, 1))),
    "modulated": (modulated, (leaf(0, 2, 2, 3, 3), leaf(1, 2, 2, 3, 3), leaf(2, 2, 2))),
    "modulated_up": (lambda x, w, s: modulated(x, w, s, up=2), (leaf(0, 2, 2, 3, 3), leaf(1, 2, 2, 3, 3), leaf(2, 2, 2))),
}


@pytest.mark.parametrize(("name", "path", "layout"), [
    *((name, "auto", "nchw") for name in CHECKED),
    *((name, path, layout) for name in CHECKED if name.startswith(("conv", "modulated"))
      for path, layout in (("auto", "nhwc"), ("closed", "nchw"), ("closed", "nhwc"))),
])
def test_first_and_second_derivatives(name, path, layout):
    function, arguments = CHECKED[name]
    arguments = [laid_out(t.detach(), layout).requires_grad_(True) for t in arguments]
    with native.using(path):
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments)
