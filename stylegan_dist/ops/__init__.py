"""Tensor operations of the networks. Each is plain PyTorch here and differentiable to any order."""

from stylegan_dist.ops.bias_act import bias_act
from stylegan_dist.ops.modulated_conv import modulated_conv2d
from stylegan_dist.ops.resample import conv2d_resample, downsample2d, resample2d, upsample2d

__all__ = ["bias_act", "conv2d_resample", "downsample2d", "modulated_conv2d", "resample2d", "upsample2d"]
