"""The first layer of the discriminator: from images of few channels to many features, one pixel at a time."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.ops import convolution, fused, native
from stylegan_dist.ops.bias_act import ACTIVATIONS, LRELU_SLOPE, bias_act_reference

MAX_CHANNELS = 4


def fromrgb(x: Tensor, weight: Tensor, bias: Tensor | None = None, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """`bias_act` with "lrelu" of the 1x1 convolution of images, in one pass over memory.

    Natively, weights keep their precision, and features are computed again in the backward pass rather than read.

    Args:
        x: [N, K, H, W] in any floating dtype, K = 1 to 4 for the native operator.
        weight: [C, K, 1, 1] in full precision.
        bias, gain, clamp: as of `bias_act`.
    Returns: [N, C, H, W], dtype and memory format of x.
    """
    served = native.serves(x, faster_on_cpu=True)
    if served and 1 <= x.shape[1] <= MAX_CHANNELS and gain > 0 and (clamp is None or clamp >= 0):
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        column = weight.new_zeros(len(weight)) if bias is None else bias
        affine = torch.cat((weight.flatten(1).to(wide), column.to(wide)[:, None]), dim=1)
        # Images of one channel have both formats; their strides tell which one is meant.
        channels_last = x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)
        return fused.call("fromrgb", x, affine, channels_last, LRELU_SLOPE, ACTIVATIONS["lrelu"][1] * gain,
                          -1.0 if clamp is None else clamp * gain)
    return fromrgb_reference(x, weight, bias, gain, clamp)


def fromrgb_reference(x: Tensor, weight: Tensor, bias: Tensor | None, gain: float, clamp: float | None) -> Tensor:
    """The same in plain PyTorch; weight and bias are cast to the dtype of x."""
    features = convolution.conv2d(x, weight.to(x.dtype)).to(x.dtype)  # autocast computes it in another
    return bias_act_reference(features, bias, "lrelu", gain, clamp)


# Natively, with A = [weight, bias] and images that have a constant one as last channel, (i, 1):
#
#     fromrgb            phi(A (i, 1))
#     fromrgb_backward   (left^T (phi' g), sum over pixels of (phi' g) (right, 1)^T); left = A, right = i in the derivative
#     fromrgb_tangent    phi' (left h + h_affine (right, 1)): its adjoint, and it is the adjoint of that one
#
# where left^T and left h leave out the last column. phi' is constant where it is defined, so that backward and tangent are
# linear in each argument but i and A, and every derivative of one is a value of the two.


def _features(image: Tensor, affine: Tensor, channels_last: bool) -> Tensor:
    return image.new_empty(image.shape[0], affine.shape[0], *image.shape[2:]).contiguous(memory_format=_format(channels_last))


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _fake(image: Tensor, affine: Tensor, channels_last: bool, *_: Any) -> Tensor:
    return _features(image, affine, channels_last)


def _tangent_fake(
    image: Tensor, affine: Tensor, left: Tensor | None, h: Tensor | None, h_affine: Tensor | None, right: Tensor | None,
    channels_last: bool, *_: Any,
) -> Tensor:
    return _features(image, affine, channels_last)


def _backward_fake(
    g: Tensor, image: Tensor, affine: Tensor, left: Tensor | None, right: Tensor | None, channels_last: bool, *_: Any
) -> tuple[Tensor, Tensor]:
    to_image = image.new_empty(0)
    if left is not None:
        to_image = torch.empty(image.shape, dtype=image.dtype, device=image.device, memory_format=_format(channels_last))
    return to_image, affine.new_empty(0 if right is None else affine.shape[0], affine.shape[1])


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    image, affine, *ctx.constants = inputs
    ctx.save_for_backward(image, affine)


def _backward(ctx: Any, g: Tensor) -> tuple:
    image, affine = ctx.saved_tensors
    needs = ctx.needs_input_grad
    left, right = affine if needs[0] else None, image if needs[1] else None
    to_image, sums = fused.call("fromrgb_backward", g, image, affine, left, right, *ctx.constants)
    return to_image if needs[0] else None, sums if needs[1] else None, None, None, None, None


def _backward_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, channels_last, slope, gain, clamp = inputs
    ctx.constants = channels_last, slope, gain, clamp
    ctx.set_materialize_grads(False)  # in a gradient penalty nothing arrives at the sums
    ctx.save_for_backward(*tensors)


def _backward_backward(ctx: Any, h: Tensor | None, h_affine: Tensor | None) -> tuple:
    g, image, affine, left, right = ctx.saved_tensors
    needs = ctx.needs_input_grad
    h, left = (None, None) if left is None or h is None else (h, left)
    h_affine, right = (None, None) if right is None or h_affine is None else (h_affine, right)
    dg = d_left = d_right = None
    if needs[0] and (h is not None or h_affine is not None):
        dg = fused.call("fromrgb_tangent", image, affine, left, h, h_affine, right, *ctx.constants)
    if (needs[3] and h is not None) or (needs[4] and h_affine is not None):
        d_right, d_left = fused.call(
            "fromrgb_backward", g, image, affine, h_affine if needs[4] else None, h if needs[3] else None, *ctx.constants)
        d_right = d_right if needs[4] and h_affine is not None else None
        d_left = _without_last_column(d_left) if needs[3] and h is not None else None
    return dg, None, None, d_left, d_right, None, None, None, None


def _tangent_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, channels_last, slope, gain, clamp = inputs
    ctx.constants = channels_last, slope, gain, clamp
    ctx.save_for_backward(*tensors)


def _tangent_backward(ctx: Any, g: Tensor) -> tuple:
    image, affine, left, h, h_affine, right = ctx.saved_tensors
    needs = ctx.needs_input_grad
    backward = functools.partial(fused.call, "fromrgb_backward")
    d_left = d_h = d_h_affine = d_right = None
    if needs[2] or needs[3]:
        d_h, d_left = backward(g, image, affine, left if needs[3] else None, h if needs[2] else None, *ctx.constants)
        d_left = _without_last_column(d_left)
    if needs[4] or needs[5]:
        d_right, d_h_affine = backward(
            g, image, affine, h_affine if needs[5] else None, right if needs[4] else None, *ctx.constants)
    return (None, None, d_left if needs[2] else None, d_h if needs[3] else None, d_h_affine if needs[4] else None,
            d_right if needs[5] else None, None, None, None, None)


def _without_last_column(matrix: Tensor) -> Tensor:
    return F.pad(matrix[:, :-1], (0, 1))


def register() -> None:
    """Tell PyTorch what the loaded library does not."""
    fused.define("fromrgb", _fake, _backward, _setup)
    fused.define("fromrgb_backward", _backward_fake, _backward_backward, _backward_setup)
    fused.define("fromrgb_tangent", _tangent_fake, _tangent_backward, _tangent_setup)
