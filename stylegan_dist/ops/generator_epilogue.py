"""What follows a convolution of the generator: filter, demodulation, noise, bias, leaky ReLU, next style, and toRGB."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.ops import fused, native
from stylegan_dist.ops.bias_act import LRELU_GAIN, LRELU_SLOPE, bias_act_reference
from stylegan_dist.ops.resample import TAPS, correlated, resample2d_reference

PADDING = (1, 1)  # before the filter: of a transposed 3x3 convolution that doubles the size, which comes before
FILTER_GAIN = 4.0  # the zeros that were put between the pixels
MAX_COLOURS = 4


class LayerNoise(NamedTuple):
    """The noise of one layer."""

    values: Tensor  # maps, float [N or 1, 1, H, W], or addresses, int64 [N, 2], from which they are drawn
    layer: int      # number of the layer, which is part of the address


class Epilogue(NamedTuple):
    """What a layer of the generator does after its convolution.

    Attributes:
        demodulation: d, [N, C] in full precision.
        bias: [C] in full precision.
        noise, strength: strength [1] in full precision, needed where there is noise.
        filtered: whether the low-pass filter [1, 3, 3, 1] of up-sampling comes first.
        clamp: bound of the activation, None for none.
    """

    demodulation: Tensor
    bias: Tensor
    noise: LayerNoise | None = None
    strength: Tensor | None = None
    filtered: bool = False
    clamp: float | None = None


def draws_noise(x: Tensor) -> bool:
    """Whether layers on the device of x draw their noise natively, so that addresses are the better noise to give them."""
    return native.serves(x)


def generator_epilogue(x: Tensor, layer: Epilogue, style: Tensor | None = None,
                       rgb_weight: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    """Features for the next convolution and the colours of this resolution, in one pass over memory.

        u = filter(x) or x,    v = d u + strength noise + b,    y = phi(v)
        z = y style,    rgb_k = sum_c rgb_weight_kc y_c

    phi is `bias_act` with "lrelu". Noise is drawn inside and drawn again in the backward pass instead of being stored.

    Args:
        x: [N, C, H, W] in any floating dtype; if filtered [N, C, H + 1, W + 1], from `conv2d_up`.
        style: of the next convolution, [N, C] in full precision; None if none follows.
        rgb_weight: [N, K, C] in full precision, K = 1 to 4, modulated; None for none.
    Returns: z [N, C, H, W] in the dtype of x, None without a style; rgb [N, K, H, W] in full precision, None without a weight.
    """
    # The native operator has no gradient for maps that want one.
    noise = layer.noise
    if native.serves(x) and not (noise is not None and noise.values.requires_grad) and (
            rgb_weight is None or rgb_weight.shape[1] <= MAX_COLOURS):
        table = _table(x, layer, style, rgb_weight)
        line = [tap * FILTER_GAIN**0.5 for tap in correlated(TAPS)] if layer.filtered else []
        maps, number = (None, 0) if noise is None else noise
        if maps is not None and maps.is_floating_point():
            maps = maps.to(table.dtype)
        z, rgb = fused.call("generator_epilogue", x, table, maps, number, line, LRELU_SLOPE, LRELU_GAIN,
                            fused.bound(layer.clamp), style is not None)
        return None if style is None else z, None if rgb_weight is None else rgb.to(rgb_weight.dtype)
    return generator_epilogue_reference(x, layer, style, rgb_weight)


def generator_epilogue_reference(x: Tensor, layer: Epilogue, style: Tensor | None,
                                 rgb_weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The same in plain PyTorch."""
    demodulation, bias, noise, strength, filtered, clamp = layer
    if filtered:
        x = resample2d_reference(x, 1, 1, PADDING, FILTER_GAIN, TAPS)
    y = x * demodulation.to(x.dtype)[:, :, None, None]
    if noise is not None:
        assert strength is not None
        maps = noise.values
        if not maps.is_floating_point():
            maps = randomness.layer_noise(maps, noise.layer, y.shape[2:])
        y = y + (maps * strength).to(x.dtype)
    y = bias_act_reference(y, bias, "lrelu", 1.0, clamp)
    z = rgb = None
    if style is not None:
        z = y * style.to(x.dtype)[:, :, None, None]
    if rgb_weight is not None:
        rgb = (rgb_weight.to(x.dtype) @ y.flatten(2)).unflatten(2, y.shape[2:]).to(rgb_weight.dtype)
    return z, rgb


# Natively, with a table [N, 4 + K, C] of the rows demodulation, bias, strength, style and weights of the colours:
#
#     generator_epilogue                  (z, rgb)
#     generator_epilogue_backward         (gradient of x, of the table) from (gz, grgb)
#     generator_epilogue_double_backward  from cotangents of these two: the gradients of gz, grgb, x and the table
#
# The table broadcasts the bias over images, and the strength over images and channels; autograd sums their gradients. phi' is
# computed from x, which the convolution has made and nobody else keeps. Noise is drawn again.


def _table(x: Tensor, layer: Epilogue, style: Tensor | None, rgb_weight: Tensor | None) -> Tensor:
    wide, (demodulation, bias, _, strength, *_) = fused.wide(x), layer
    shape = (x.shape[0], 1, x.shape[1])
    zeros = demodulation.new_zeros((), dtype=wide).expand(shape)
    rows = [demodulation.to(wide)[:, None], bias.to(wide).expand(shape),
            zeros if strength is None else strength.to(wide).expand(shape), zeros if style is None else style.to(wide)[:, None]]
    return torch.cat(rows if rgb_weight is None else [*rows, rgb_weight.to(wide)], dim=1)


def _outputs(t: Tensor, table: Tensor, line: list[float], makes_z: bool) -> tuple[Tensor, Tensor]:
    """z and rgb without values, or what has their shapes."""
    height, width = (size - 1 if line else size for size in t.shape[2:])
    z = fused.empty_like(t, (*t.shape[:2], height, width)) if makes_z else t.new_empty(0)
    return z, table.new_empty(t.shape[0], table.shape[1] - 4, height, width)


def _fake(t: Tensor, table: Tensor, noise: Tensor | None, layer: int, line: list[float], *rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(t, table, line, makes_z=rest[-1])


def _backward(ctx: Any, gz: Tensor | None, g: Tensor | None) -> tuple:
    *constants, makes_z = ctx.constants
    gz = gz if makes_z else None  # what stands in for z has a gradient where someone adds it up
    if gz is None and g is None:
        return ()
    return fused.call("generator_epilogue_backward", gz, g, *ctx.saved_tensors, *constants)


def _backward_fake(gz: Tensor | None, g: Tensor | None, t: Tensor, table: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return fused.empty_like(t), table.new_empty(table.shape)


def _backward_backward(ctx: Any, h: Tensor | None, h_table: Tensor | None) -> tuple:
    if h is None and h_table is None:
        return ()
    return fused.call("generator_epilogue_double_backward", h, h_table, *ctx.saved_tensors, *ctx.constants)


def _double_backward_fake(
    h: Tensor | None, h_table: Tensor | None, gz: Tensor | None, g: Tensor | None, t: Tensor, table: Tensor,
    noise: Tensor | None, layer: int, line: list[float], *_: Any,
) -> tuple[Tensor, ...]:
    return *_outputs(t, table, line, gz is not None), fused.empty_like(t), table.new_empty(table.shape)


def _double_backward_backward(*_: Any) -> tuple:
    raise NotImplementedError("third derivatives of the generator's epilogue: use the reference path (ops.using)")


def _layer_noise_fake(address: Tensor, layer: int, height: int, width: int) -> Tensor:
    return address.new_empty(address.shape[0], 1, height, width, dtype=torch.float32)


# Often only one of the two results is used.
fused.define("generator_epilogue", _fake, _backward, slice(0, 3), materialize=False)
fused.define("generator_epilogue_backward", _backward_fake, _backward_backward, slice(0, 5), materialize=False)
fused.define("generator_epilogue_double_backward", _double_backward_fake, _double_backward_backward)
fused.define("layer_noise", _layer_noise_fake)
