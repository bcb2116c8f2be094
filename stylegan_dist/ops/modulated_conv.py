"""Modulated and demodulated convolution (Karras et al. 2020, section 2.2, equations 1 to 3).

Each sample is convolved with its own weights w'_noik = s_ni w_oik, each output channel scaled to unit norm by
d_no = (sum_ik w'_noik^2 + 1e-8)^(-1/2). That is one ordinary convolution of all samples, scaled before and after,

    d_no (w' * x) = d_no (w * (s x)),    sum_ik w'_noik^2 = sum_i s_ni^2 (sum_k w_oik^2),

and the norms are a small matrix product. Whoever makes x scales it by s on the way, and `generator_epilogue`, which follows
the convolution, by d.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_dist.ops import convolution
from stylegan_dist.ops.resample import conv2d_up, in_format_of


def bounded_style(style: Tensor, dtype: torch.dtype) -> Tensor:
    """The style [N, I] for a convolution in `dtype`: for float16 with a largest magnitude of one.

    Demodulation takes the factor out again; without it the products overflow in float16.
    """
    return style / style.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) if dtype == torch.float16 else style


def modulated_conv2d(x: Tensor, weight: Tensor, style: Tensor, up: int = 1) -> tuple[Tensor, Tensor]:
    """Convolve samples that have been scaled by their styles, and the demodulation that is still to be applied.

    Args:
        x: [N, I, H, W], in the precision of the layer (float32, bfloat16 or float16), times style.
        weight: [O, I, k, k], k = 1 or 3, in full precision.
        style: [N, I], in full precision, as from `bounded_style`.
        up: 1 or 2.
    Returns: [N, O, H, W], or [N, O, 2H + 1, 2W + 1] with up = 2 and k = 3, for the low-pass filter to follow; dtype of x, or
        of autocast.
        d: [N, O] in full precision, that of weight, under autocast too.
    """
    if x.dtype == torch.float16:  # likewise
        weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30) * weight[0].numel() ** 0.5)
    with convolution.without_autocast(x):  # which would make it a product in 16 bits, of a style in 16 bits
        norm2 = style.to(weight.dtype).square() @ weight.square().sum(dim=(2, 3)).t()
    weight = weight.to(x.dtype)
    if up == 2:
        x = conv2d_up(x, weight)
    else:
        x = convolution.conv2d(x, in_format_of(x, weight), padding=weight.shape[-1] // 2)
    return x, (norm2 + 1e-8).rsqrt()
