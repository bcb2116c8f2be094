"""What feature networks have in common: the trunk, convolutions with batch normalisation, and how weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maps = list[Tensor]  # of some layers, each [N, C, H, W]


class Trunk(nn.Module):
    """A feature network between prepared input and features. It is never trained, and treats every sample alone.

    `forward(x, maps)` gives the features [N, dimensions] of x [N, C, H, W], and appends to `maps`, if that is a list, the
    maps of the layers whose differences are the perceptual distance.
    """

    dimensions: int
    classes = 0      # of the classifier; 0: there is none

    @classmethod
    def rename(cls, name: str) -> str | None:
        """Our name of a tensor in the file of published weights; None for one that is not used."""
        return name

    def classify(self, features: Tensor) -> Tensor:
        """The classifier's logits [N, classes] of features."""
        raise NotImplementedError


class Normalisation(nn.Module):
    """Batch normalisation with the statistics of training (Ioffe and Szegedy 2015, section 3.1)."""

    running_mean: Tensor
    running_var: Tensor

    epsilon = 1e-3

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.epsilon)


class Convolution(nn.Module):
    """A convolution without bias, then batch normalisation, then what `activation` says.

    Args:
        padding: of both sides (height, width); "same" as TensorFlow pads: the output has ceil(size / stride) pixels, and of
            an odd number of padded ones the greater half is below and on the right.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, groups: int = 1,
                 padding: tuple[int, int] | str = (0, 0), activation: str = "relu"):
        super().__init__()
        self.stride, self.groups, self.padding, self.activation = stride, groups, padding, activation
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.bn: Normalisation | None = Normalisation(outputs)

    def fold(self) -> None:
        """Make the normalisation a part of the convolution, computed in float64. Saves a fifth of the time on a CPU."""
        if self.bn is None:
            return
        scale = self.bn.weight.double() / (self.bn.running_var.double() + self.bn.epsilon).sqrt()
        bias = self.bn.bias.double() - self.bn.running_mean.double() * scale
        self.conv.weight = nn.Parameter((self.conv.weight.double() * scale[:, None, None, None]).float())
        self.conv.bias = nn.Parameter(bias.float())
        self.bn = None

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if isinstance(padding, str):
            height, width = (same_padding(size, kernel, self.stride)
                             for size, kernel in zip(x.shape[2:], self.conv.weight.shape[2:], strict=True))
            padding = height[0], width[0]
            if height[0] != height[1] or width[0] != width[1]:
                x, padding = F.pad(x, (*width, *height)), (0, 0)
        x = F.conv2d(x, self.conv.weight, self.conv.bias, self.stride, padding, groups=self.groups)
        if self.bn is not None:
            x = self.bn(x)
        return {"relu": F.relu, "relu6": F.relu6, "linear": lambda x: x}[self.activation](x)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after `size` pixels, so that ceil(size / stride) come out, as TensorFlow's SAME."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def load_trunk(kind: type[Trunk], tensors: Mapping[str, Tensor], **options: object) -> Trunk:
    """A trunk with published weights, in float32, ready to use.

    Args:
        kind: its class.
        tensors: of the file.
        options: of its constructor.
    Raises:
        ValueError: names or shapes do not fit, or a value is not finite.
    """
    with torch.device("meta"):
        trunk = kind(**options)
    expected = trunk.state_dict()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (own := kind.rename(name)) is None:
            continue
        if own not in expected:
            raise ValueError(f"it has {name}, which is not a part of the network")
        while tensor.dim() > expected[own].dim() and len(tensor) == 1:
            tensor = tensor[0]
        if tensor.shape != expected[own].shape:
            raise ValueError(f"{name} has the shape {list(tensor.shape)} instead of {list(expected[own].shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")
        found[own] = tensor.detach().to(torch.float32).contiguous()
    if missing := sorted(set(expected) - set(found)):
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    trunk.load_state_dict(found, assign=True)
    return ready(trunk)


def ready(trunk: Trunk) -> Trunk:
    """The trunk with folded normalisations and frozen parameters."""
    with torch.no_grad():
        for module in trunk.modules():
            if isinstance(module, Convolution):
                module.fold()
    return trunk.eval().requires_grad_(False)
