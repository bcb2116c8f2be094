"""What follows a convolution of the generator: filter, demodulation, noise, bias, leaky ReLU, next style, and toRGB."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.ops.bias_act import bias_act_reference
from stylegan_dist.ops.resample import TAPS, resample2d_reference

PADDING = (1, 1)  # before the filter: of a transposed 3x3 convolution that doubles the size, which comes before
FILTER_GAIN = 4.0  # the zeros that were put between the pixels


class LayerNoise(NamedTuple):
    """The noise of one layer."""

    values: Tensor  # maps, float [N or 1, 1, H, W], or addresses, int64 [N, 2], from which they are drawn
    layer: int      # number of the layer, which is part of the address


def draws_noise(x: Tensor) -> bool:
    """Whether layers on the device of x draw their noise natively, so that addresses are the better noise to give them."""
    return False


def generator_epilogue(
    x: Tensor,
    demodulation: Tensor,
    bias: Tensor,
    noise: LayerNoise | None = None,
    strength: Tensor | None = None,
    style: Tensor | None = None,
    rgb_weight: Tensor | None = None,
    filtered: bool = False,
    clamp: float | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Features for the next convolution and the colours of this resolution, in one pass over memory.

        u = filter(x) or x,    v = d u + strength noise + b,    y = phi(v)
        z = y style,    rgb_k = sum_c rgb_weight_kc y_c

    phi is `bias_act` with "lrelu". Noise is drawn inside and drawn again in the backward pass instead of being stored.

    Args:
        x: [N, C, H, W] in any floating dtype; if filtered [N, C, H + 1, W + 1], from `conv2d_up`.
        demodulation: d, [N, C] in full precision.
        bias: [C] in full precision.
        noise, strength: both or none; strength [1] in full precision.
        style: of the next convolution, [N, C] in full precision; None if none follows.
        rgb_weight: [N, K, C] in full precision, K = 1 to 4, modulated; None for none.
        filtered: whether the low-pass filter [1, 3, 3, 1] of up-sampling comes first.
        clamp: bound of y, None for none.
    Returns: z [N, C, H, W] in the dtype of x, None without a style; rgb [N, K, H, W] in full precision, None without a weight.
    """
    return generator_epilogue_reference(x, demodulation, bias, noise, strength, style, rgb_weight, filtered, clamp)


def generator_epilogue_reference(
    x: Tensor, demodulation: Tensor, bias: Tensor, noise: LayerNoise | None, strength: Tensor | None, style: Tensor | None,
    rgb_weight: Tensor | None, filtered: bool, clamp: float | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The same in plain PyTorch."""
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
