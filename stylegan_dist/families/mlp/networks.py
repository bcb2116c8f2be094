"""The generator and discriminator of 2014.

Goodfellow et al. 2014, "Generative adversarial nets", section 5: a multilayer perceptron of rectified linear units, and one of
maxout units (Goodfellow et al. 2013) with dropout. Sizes and initial values are those of the published MNIST experiment.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_dist.families.mlp.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.networks.generator import SampleShape, UniformLatents
from stylegan_dist.networks.layers import Draw, Precision, columns_of

GENERATOR_RANGE, DISCRIMINATOR_RANGE = 0.05, 0.005  # initial weights are uniform between -range and range


class Linear(nn.Module):
    """[N, in] -> [N, out]; the weights begin uniform in (-limit, limit), the bias at 0."""

    def __init__(self, in_features: int, out_features: int, limit: float):
        super().__init__()
        self.limit = limit
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def init_parameters(self, draw: Draw) -> None:
        # erf(n / sqrt 2) of a standard normal n is uniform between -1 and 1.
        self.weight.copy_(torch.erf(draw("weight", self.weight.shape).double() / math.sqrt(2)) * self.limit)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.t())


class LabelLinear(Linear):
    """A `Linear` of the one-hot vectors of labels: int64 [N] -> [N, out]."""

    def forward(self, labels: Tensor | None) -> Tensor:
        return columns_of(self.weight, labels) + self.bias


class Generator(UniformLatents):
    """Latents z and class labels to images.

    Args:
        shape: any resolution.
        settings: resolved.
    """

    z_limit = math.sqrt(3)  # variance 1

    def __init__(self, shape: SampleShape, settings: GeneratorConfig):
        super().__init__()
        self.z_dim = settings.z_dim
        self.num_classes = shape.num_classes
        self.image = shape.channels, shape.resolution, shape.resolution
        self.embed = LabelLinear(shape.num_classes, settings.class_dim, GENERATOR_RANGE) if shape.num_classes else None
        widths = [settings.z_dim + (settings.class_dim if shape.num_classes else 0), *[settings.width] * settings.layers]
        self.hidden = nn.ModuleList(Linear(a, b, GENERATOR_RANGE) for a, b in pairwise(widths))
        self.out = Linear(widths[-1], math.prod(self.image), GENERATOR_RANGE)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: [N, z_dim], labels: int64 [N] or None -> images [N, C, R, R] in (-1, 1)."""
        x = z.to(self.out.weight.dtype)
        if self.embed is not None:
            x = torch.cat([x, self.embed(labels)], dim=1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return torch.tanh(self.out(x) / 2).unflatten(1, self.image)  # 2 s(x) - 1: the paper's sigmoid in our range


class Discriminator(nn.Module):
    """Images to logits: [N, C, R, R] -> [N]. The probability that an image is real is the sigmoid of its logit.

    Args:
        shape: any resolution.
        settings: resolved.
        precision: for the interface; all is computed in the precision of the parameters.
    """

    def __init__(self, shape: SampleShape, settings: DiscriminatorConfig, precision: Precision = Precision()):  # noqa: B008
        super().__init__()
        self.precision = precision
        self.num_classes = shape.num_classes
        self.pieces = settings.pieces
        pixels, limit = shape.channels * shape.resolution**2, DISCRIMINATOR_RANGE
        self.embed = LabelLinear(shape.num_classes, settings.class_dim, limit) if shape.num_classes else None
        widths = [pixels + (settings.class_dim if shape.num_classes else 0), *[settings.width] * settings.layers]
        self.hidden = nn.ModuleList(Linear(a, b * settings.pieces, limit) for a, b in pairwise(widths))
        self.out = Linear(widths[-1], 1, limit)
        self.dropouts = [(pixels, settings.image_dropout), *[(settings.width, settings.dropout)] * settings.layers]
        self.draws = sum(count for count, _ in self.dropouts)

    def forward(self, images: Tensor, labels: Tensor | None = None, uniform: Tensor | None = None) -> Tensor:
        """Logits [N].

        Args:
            images: [N, C, R, R] in [-1, 1].
            labels: int64 [N], or None.
            uniform: draws in [0, 1) for dropout, [N, draws]; None for no dropout.
        """
        x = (images.to(self.out.weight.dtype).flatten(1) + 1) / 2  # as the paper sees them: what is dropped is black
        factors = [None] * len(self.dropouts) if uniform is None else self._factors(uniform, x.dtype)
        x = _times(x, factors[0])
        if self.embed is not None:
            x = torch.cat([x, self.embed(labels)], dim=1)
        for layer, factor in zip(self.hidden, factors[1:], strict=True):
            x = _times(layer(x).unflatten(1, (-1, self.pieces)).amax(dim=2), factor)
        return self.out(x)[:, 0]

    def _factors(self, uniform: Tensor, dtype: torch.dtype) -> list[Tensor | None]:
        """0 for what is dropped, and for the rest what keeps the mean: [N, count] for each layer."""
        parts = uniform.split([count for count, _ in self.dropouts], dim=1)
        return [(part >= p).to(dtype) / (1 - p) for part, (_, p) in zip(parts, self.dropouts, strict=True)]


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor
