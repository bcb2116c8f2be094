"""Modulated and demodulated convolution (Karras et al. 2020, section 2.2, equations 1 to 3)."""

from __future__ import annotations

import torch

from stylegan_dist.ops.resample import conv2d_resample


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    style: torch.Tensor,
    up: int = 1,
    demodulate: bool = True,
) -> torch.Tensor:
    """Convolve each sample with its own weights s_i * w_oik, each output channel scaled to unit norm.

    Runs as scale before, one ordinary convolution, scale after: with per-sample weights
    w'_noik = s_ni w_oik and d_no = (sum_ik w'_noik^2 + 1e-8)^(-1/2) the result d_no * (w' * x) equals
    d_no * (w * (s x)), and sum_ik w'^2 = sum_i s_ni^2 (sum_k w_oik^2) is a small matrix product.

    Args:
        x: [N, I, H, W], in the precision of the layer (float32, bfloat16 or float16).
        weight: [O, I, k, k], k = 1 or 3, in full precision.
        style: [N, I], in full precision.
        up: 1 or 2.
        demodulate: whether to divide by the norm.
    Returns: [N, O, H * up, W * up], dtype of x.
    """
    if demodulate and x.dtype == torch.float16:
        # Demodulation takes these factors out again; without them the products overflow in float16.
        fan_in = weight[0].numel()
        weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30) * fan_in**0.5)
        style = style / style.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    x = x * style.to(x.dtype)[:, :, None, None]
    x = conv2d_resample(x, weight.to(x.dtype), up=up)
    if demodulate:
        norm2 = style.square() @ weight.square().sum(dim=(2, 3)).t()
        x = x * (norm2 + 1e-8).rsqrt().to(x.dtype)[:, :, None, None]
    return x
