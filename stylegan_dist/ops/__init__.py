"""Tensor operations of the networks. Each is plain PyTorch here and differentiable to any order."""

from stylegan_dist.ops.bias_act import bias_act
from stylegan_dist.ops.convolution import conv2d
from stylegan_dist.ops.discriminator_epilogue import discriminator_epilogue
from stylegan_dist.ops.filtered_lrelu import Filters, filtered_lrelu
from stylegan_dist.ops.fromrgb import fromrgb
from stylegan_dist.ops.generator_epilogue import Epilogue, LayerNoise, draws_noise, generator_epilogue
from stylegan_dist.ops.modulated_conv import bounded_style, modulated_conv2d
from stylegan_dist.ops.resample import conv2d_resample, downsample2d, resample2d, upsample2d

__all__ = [
    "Epilogue", "Filters", "LayerNoise", "bias_act", "bounded_style", "conv2d", "conv2d_resample", "discriminator_epilogue",
    "downsample2d", "draws_noise", "filtered_lrelu", "fromrgb", "generator_epilogue", "modulated_conv2d", "resample2d",
    "upsample2d",
]
