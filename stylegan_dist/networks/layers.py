"""Layers with an equalised learning rate (Karras et al. 2018, section 4.1), the precision policy, and what networks with
feature maps at several resolutions have in common.

Parameters are stored with unit variance and scaled when they are used. Adam then changes all of them at the same
relative speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stylegan_dist import ops, randomness

MIN_RESOLUTION = 4
Draw = Callable[[str, torch.Size], torch.Tensor]  # (parameter name, shape) -> standard normal values


@dataclass(frozen=True)
class Precision:
    """The blocks that compute in a low precision, and the protection from overflow.

    The mapping network, the sum of RGB images, the 4x4 epilogue of the discriminator and everything
    below the top resolutions stay in the precision of the parameters.
    """

    low: torch.dtype = torch.float32    # float32 (no low precision), bfloat16 or float16
    top_resolutions: int = 4            # how many of the highest resolutions use it
    clamp: float | None = None          # bound of activations in all blocks (float16 wants 256)
    channels_last: bool = False         # memory format of the convolutions' inputs

    def of_block(self, resolution: int, image_resolution: int, full: torch.dtype) -> torch.dtype:
        """The dtype in which the block at `resolution` computes, 8x8 and above only."""
        lowest = max(image_resolution >> (self.top_resolutions - 1), 8) if self.top_resolutions else None
        if self.low == torch.float32 or lowest is None or resolution < lowest:
            return full
        return self.low

    def place(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """x in `dtype` and in the memory format of this policy."""
        return x.to(dtype, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def initialize(network: nn.Module, seed: int, purpose: str) -> None:
    """Set all parameters and noise buffers as a function of (seed, purpose, name)."""
    zero = torch.zeros(1, dtype=torch.int64, device=next(network.parameters()).device)
    for prefix, module in network.named_modules():
        if hasattr(module, "init_parameters"):

            def draw(name: str, shape: torch.Size, prefix: str = prefix) -> torch.Tensor:
                return randomness.normal(seed, f"{purpose}.{prefix}.{name}", zero, shape)[0]

            with torch.no_grad():
                module.init_parameters(draw)


def freeze(network: nn.Module, parts: Sequence[str]) -> None:
    """Let parts of a network learn no more: their parameters become buffers, of which no optimizer and no engine hears.

    Names and values stay, so a checkpoint does not show it. `network.frozen` names the tensors.
    """
    frozen = [name for name, _ in network.named_parameters() for part in parts if name.startswith(f"{part}.")]
    for name in frozen:
        owner, _, key = name.rpartition(".")
        module = network.get_submodule(owner)
        parameter = module._parameters.pop(key)
        assert parameter is not None
        module.register_buffer(key, parameter.detach())
    network.frozen = tuple(frozen)  # type: ignore[assignment]


def run_block(block: Callable, recompute: bool, *arguments: Any) -> Any:
    """block(*arguments); with `recompute`, what it saves for the backward pass is computed again there.

    The graph is the same with and without, so gradients of any order are equal to the last bit. The block
    must not draw random numbers.
    """
    if recompute and torch.is_grad_enabled():
        arithmetic = Arithmetic()
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False,
                          context_fn=lambda: (contextlib.nullcontext(), arithmetic))
    return block(*arguments)


class Arithmetic:
    """A context with or without TF32, or with the setting at its construction, which a backward pass may have lost."""

    def __init__(self, tf32: bool | None = None) -> None:
        self._wanted = self._settings() if tf32 is None else (tf32, tf32)

    def __enter__(self) -> None:
        self._before = self._settings()
        self._set(self._wanted)

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    @staticmethod
    def _settings() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    @staticmethod
    def _set(settings: tuple[bool, bool]) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = settings


class Pyramid(Protocol):
    """Knobs of a network with feature maps at several resolutions."""

    @property
    def channel_base(self) -> int: ...

    @property
    def channel_max(self) -> int: ...


def resolutions(image_resolution: int) -> list[int]:
    """4, 8, ..., image_resolution."""
    return [2**i for i in range(2, image_resolution.bit_length())]


def channels_at(resolution: int, settings: Pyramid) -> int:
    """Feature maps at a resolution."""
    return min(settings.channel_base // resolution, settings.channel_max)


def columns_of(weight: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """The columns of a weight [out, classes] that labels int64 [N] name: [N, out].

    This is the product with one-hot vectors to the last bit. Its time and memory do not depend on the number of classes. The
    gradient is summed in a fixed order on GPUs, too.
    """
    assert labels is not None, "a conditional network needs labels"
    return nn.functional.embedding(labels, weight.t())


def normalize_second_moment(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(mean_j x_j^2 + 1e-8) over the last dimension: [N, C] -> [N, C]."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


class Dense(nn.Module):
    """Fully connected layer: [N, in] -> [N, out].

    Args:
        bias_init: initial value of the effective bias.
        lr_multiplier: learning rate of this layer relative to the others.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
    ):
        super().__init__()
        self.activation = activation
        self.bias_init = bias_init
        self.lr_multiplier = lr_multiplier
        self.weight_gain = lr_multiplier / in_features**0.5
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape) / self.lr_multiplier)
        self.bias.fill_(self.bias_init / self.lr_multiplier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x @ (self.weight * self.weight_gain).t()
        return ops.bias_act(x, self.bias * self.lr_multiplier, self.activation)


class LabelDense(Dense):
    """A linear `Dense` of the one-hot vectors of labels: int64 [N] -> [N, out].

    Args:
        classes: of the labels.
    """

    def __init__(self, classes: int, out_features: int):
        super().__init__(classes, out_features)

    def forward(self, labels: torch.Tensor | None) -> torch.Tensor:
        return ops.bias_act(columns_of(self.weight, labels) * self.weight_gain, self.bias, self.activation)


class Conv2d(nn.Module):
    """Convolution of odd kernel size with "same" padding: [N, in, H, W] -> [N, out, H / down, W / down].

    The output has the dtype of x. Weights are cast to it.

    Args:
        activation: "lrelu", or "linear", which is without a bias, too.
        sampling: "down": halve the size, low-pass filter first; "filter": apply the filter of the next layer's down-sampling to
            the output, which makes it larger by a pixel; "decimate": halve the size where the layer before has done that, for
            kernel 3; "same" for none of it.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, activation: Literal["linear", "lrelu"] = "lrelu",
                 sampling: Literal["same", "down", "filter", "decimate"] = "same", clamp: float | None = None):
        super().__init__()
        self.sampling = sampling
        self.clamp = clamp
        self.weight_gain = 1 / (in_channels * kernel**2) ** 0.5
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if activation == "lrelu" else None

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: torch.Tensor, gain: float = 1.0, residual: torch.Tensor | None = None) -> torch.Tensor:
        """gain: factor on the output; residual: shape and dtype of the output, is added to it."""
        weight = (self.weight * self.weight_gain).to(x.dtype)
        if self.sampling == "decimate":
            x = ops.conv2d(x, weight, stride=2)
        else:
            x = ops.conv2d_resample(x, weight, down=2 if self.sampling == "down" else 1)
        if self.bias is not None:
            return ops.discriminator_epilogue(x, self.bias, gain, self.clamp, residual, self.sampling == "filter")
        x = ops.bias_act(x, gain=gain, clamp=self.clamp)
        return x if residual is None else residual + x


class Linear(nn.Module):
    """[N, in] -> [N, out], without bias or an equalised learning rate; weights begin as N(0, std^2)."""

    def __init__(self, in_features: int, out_features: int, std: float):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape) * self.std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t()


class LabelLinear(Linear):
    """A `Linear` of the one-hot vectors of labels: int64 [N] -> [N, out]."""

    def forward(self, labels: torch.Tensor | None) -> torch.Tensor:  # type: ignore[override]
        return columns_of(self.weight, labels)


class MappingNetwork(nn.Module):
    """Latents and class labels to w (Karras et al. 2019, section 2; conditioning as in 2020b).

    Args:
        z_dim: width of z; 0 for a network of the label alone.
        num_classes: 0 for no conditioning.
        w_dim: width of every layer and of the result.
        num_layers, lr_multiplier: the fully connected layers after the normalised input.
    """

    def __init__(self, z_dim: int, num_classes: int, w_dim: int, num_layers: int, lr_multiplier: float = 0.01):
        super().__init__()
        self.embed = LabelDense(num_classes, w_dim) if num_classes else None
        width = z_dim + (w_dim if num_classes else 0)
        self.layers = nn.Sequential(*(
            Dense(width if i == 0 else w_dim, w_dim, "lrelu", lr_multiplier=lr_multiplier) for i in range(num_layers)
        ))

    def forward(self, z: torch.Tensor | None, label: torch.Tensor | None) -> torch.Tensor:
        """z: [N, z_dim] or None, label: int64 [N] or None -> w: [N, w_dim]."""
        parts = []
        if z is not None:
            parts.append(normalize_second_moment(z.to(next(self.parameters()).dtype)))
        if self.embed is not None:
            parts.append(normalize_second_moment(self.embed(label)))
        return self.layers(torch.cat(parts, dim=1))
