"""The first layer of the discriminator: from images of few channels to many features, one pixel at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_dist.ops import convolution, fused, native
from stylegan_dist.ops.bias_act import LRELU_GAIN, LRELU_SLOPE, bias_act_reference

MAX_CHANNELS = 4


def fromrgb(x: Tensor, weight: Tensor, bias: Tensor | None = None, clamp: float | None = None) -> Tensor:
    """`bias_act` with "lrelu" of the 1x1 convolution of images, in one pass over memory.

    Natively, weights keep their precision, and features are computed again in the backward pass rather than read.

    Args:
        x: [N, K, H, W] in any floating dtype, K = 1 to 4 for the native operator.
        weight: [C, K, 1, 1] in full precision.
        bias, clamp: as of `bias_act`.
    Returns: [N, C, H, W], dtype and memory format of x.
    """
    if native.serves(x) and x.shape[1] <= MAX_CHANNELS:
        wide = fused.wide(x)
        column = weight.new_zeros(len(weight)) if bias is None else bias
        affine = torch.cat((weight.flatten(1).to(wide), column.to(wide)[:, None]), dim=1)
        # Images of one channel have both formats; their strides tell which one is meant.
        channels_last = x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)
        return fused.call("fromrgb", x, affine, channels_last, LRELU_SLOPE, LRELU_GAIN, fused.bound(clamp))
    return fromrgb_reference(x, weight, bias, clamp)


def fromrgb_reference(x: Tensor, weight: Tensor, bias: Tensor | None, clamp: float | None) -> Tensor:
    """The same in plain PyTorch; weight and bias are cast to the dtype of x."""
    features = convolution.conv2d(x, weight.to(x.dtype)).to(x.dtype)  # autocast computes it in another
    return bias_act_reference(features, bias, "lrelu", 1.0, clamp)


# Natively, with A = [weight, bias] and images that have a constant one as last channel, (i, 1):
#
#     fromrgb            phi(A (i, 1))
#     fromrgb_backward   (left^T (phi' g), sum over pixels of (phi' g) (right, 1)^T); left = A, right = i in the derivative
#     fromrgb_tangent    phi' (left h + h_affine (right, 1)): its adjoint, and it is the adjoint of that one
#
# where left^T and left h leave out the last column. phi' is constant where it is defined, so that backward and tangent are
# linear in each argument but i and A, and every derivative of one is a value of the two.


def _fake(image: Tensor, affine: Tensor, *rest: Any) -> Tensor:
    channels_last = rest[-4]
    return fused.empty(image, (image.shape[0], affine.shape[0], *image.shape[2:]), channels_last)


def _backward_fake(
    g: Tensor, image: Tensor, affine: Tensor, left: Tensor | None, right: Tensor | None, channels_last: bool, *_: Any
) -> tuple[Tensor, Tensor]:
    to_image = image.new_empty(0) if left is None else fused.empty(image, image.shape, channels_last)
    return to_image, affine.new_empty(0 if right is None else affine.shape[0], affine.shape[1])


def _gradients(
    ctx: Any, g: Tensor, image: Tensor, affine: Tensor, left: Tensor | None, right: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """fromrgb_backward, and None for what a `left` or `right` of None leaves out."""
    if left is None and right is None:
        return None, None
    to_image, sums = fused.call("fromrgb_backward", g, image, affine, left, right, *ctx.constants)
    return None if left is None else to_image, None if right is None else sums


def _backward(ctx: Any, g: Tensor) -> tuple:
    image, affine = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return _gradients(ctx, g, image, affine, affine if needs[0] else None, image if needs[1] else None)


def _backward_backward(ctx: Any, h: Tensor | None, h_affine: Tensor | None) -> tuple:
    g, image, affine, left, right = ctx.saved_tensors
    needs = ctx.needs_input_grad
    h, left = (None, None) if left is None or h is None else (h, left)
    h_affine, right = (None, None) if right is None or h_affine is None else (h_affine, right)
    dg = None
    if needs[0] and (h is not None or h_affine is not None):
        dg = fused.call("fromrgb_tangent", image, affine, left, h, h_affine, right, *ctx.constants)
    d_right, d_left = _gradients(ctx, g, image, affine, h_affine if needs[4] else None, h if needs[3] else None)
    return dg, None, None, _without_last_column(d_left), d_right


def _tangent_backward(ctx: Any, g: Tensor) -> tuple:
    image, affine, left, h, h_affine, right = ctx.saved_tensors
    needs = ctx.needs_input_grad
    d_h, d_left = _gradients(ctx, g, image, affine, left if needs[3] else None, h if needs[2] else None)
    d_right, d_h_affine = _gradients(ctx, g, image, affine, h_affine if needs[5] else None, right if needs[4] else None)
    return None, None, _without_last_column(d_left), d_h, d_h_affine, d_right


def _without_last_column(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else F.pad(matrix[:, :-1], (0, 1))


# In a gradient penalty nothing arrives at the sums: no zeros stand in for their gradient.
fused.define("fromrgb", _fake, _backward, slice(0, 2))
fused.define("fromrgb_backward", _backward_fake, _backward_backward, slice(0, 5), materialize=False)
fused.define("fromrgb_tangent", _fake, _tangent_backward, slice(0, 6))
