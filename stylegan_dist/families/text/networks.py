"""A generator and a discriminator of lines of text: residual blocks of convolutions over positions, and a softmax.

Gulrajani et al. 2017, "Improved training of Wasserstein GANs", section 5.4: the generator gives a distribution over symbols at
each position, and the discriminator sees these in place of symbols. Ours differ: leaky rectifiers, weights whose
residual branches begin small (Zhang et al. 2019), sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_dist.errors import InputError
from stylegan_dist.families.text.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.networks.generator import PlainLatents, SampleShape
from stylegan_dist.networks.layers import Draw, LabelLinear, Linear, Precision
from stylegan_dist.ops.bias_act import LRELU_SLOPE

BRANCH_GAIN = 0.42         # of the last convolution of a block at the beginning
RECTIFIER_GAIN = 2**0.5


class Convolution(nn.Module):
    """Convolution over positions with "same" padding: [N, in, T] -> [N, out, T].

    Args:
        kernel: odd.
        gain: the weights begin with the standard deviation gain / sqrt(fan in), the bias at 0.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, gain: float = 1.0):
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape) * (self.gain / self.weight[0].numel() ** 0.5))
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias, padding=self.weight.shape[2] // 2)


class Block(nn.Module):
    """x + conv(phi(conv(phi(x)))), phi a leaky rectifier: [N, width, T] -> the same.

    Args:
        blocks: of the whole network.
    """

    def __init__(self, width: int, kernel: int, blocks: int):
        super().__init__()
        self.conv1 = Convolution(width, width, kernel, RECTIFIER_GAIN * blocks**-0.5)
        self.conv2 = Convolution(width, width, kernel, BRANCH_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(rectified(self.conv1(rectified(x))))


def rectified(x: Tensor) -> Tensor:
    """Leaky ReLU."""
    return F.leaky_relu(x, LRELU_SLOPE)


class Generator(PlainLatents):
    """Latents z and class labels to probabilities of symbols.

    Args:
        shape: one channel; `resolution` is the side of the array in which the probabilities lie.
        settings: resolved.
    """

    named = "the family text"

    def __init__(self, shape: SampleShape, settings: GeneratorConfig):
        super().__init__()
        if shape.channels != 1:
            raise InputError(f"the family text makes text, and the samples have {shape.channels} channels: choose another "
                             "generator.family, or data made with pack --text")
        width, self.length, self.symbols, self.side = settings.width, settings.length, settings.symbols, shape.resolution
        self.z_dim, self.num_classes = settings.z_dim, shape.num_classes
        self.choices, self.choice_of = settings.choices, settings.choice_of
        inputs = settings.z_dim + (settings.class_dim if shape.num_classes else 0)
        self.embed = LabelLinear(shape.num_classes, settings.class_dim, 1.0) if shape.num_classes else None
        self.dense = Linear(inputs, width * self.length, inputs**-0.5)
        self.blocks = nn.Sequential(*(Block(width, settings.kernel, settings.blocks) for _ in range(settings.blocks)))
        self.out = Convolution(width, self.symbols)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: [N, z_dim], labels: int64 [N] or None -> [N, 1, R, R] in [0, 1]; each column sums to 1.

        Positions behind `length` are blanks, the symbol of row 0.
        """
        x = self.chosen(z.to(self.dense.weight.dtype))
        if self.embed is not None:
            x = torch.cat([x, self.embed(labels)], dim=1)
        x = self.out(self.blocks(self.dense(x).unflatten(1, (-1, self.length))))
        x = F.pad(F.softmax(x, dim=1), (0, 0, 0, self.side - self.symbols))
        if behind := self.side - self.length:
            blank = F.pad(x.new_ones(x.shape[0], 1, behind), (0, 0, 0, self.side - 1))
            x = torch.cat([x, blank], dim=2)
        return x[:, None]

    def chosen(self, z: Tensor) -> Tensor:
        """z [N, z_dim] with each of the first groups replaced by a one-hot vector of the same length in the mean.

        What follows is a mixture of learned codes. Without them a continuous map would have to tear the space of latents
        apart between any two words.
        """
        if not self.choices:
            return z
        groups, rest = z.split([self.choices * self.choice_of, self.z_dim - self.choices * self.choice_of], dim=1)
        groups = groups.unflatten(1, (self.choices, self.choice_of))
        chosen = torch.zeros_like(groups).scatter(2, groups.argmax(dim=2, keepdim=True), self.choice_of**0.5)
        return torch.cat([chosen.flatten(1), rest], dim=1)


class Discriminator(nn.Module):
    """Probabilities of symbols to logits: [N, 1, R, R] -> [N].

    With classes the logit is the scalar product of the features with an embedding of the label (Miyato and Koyama 2018).

    Args:
        settings: resolved.
        precision: for the interface; all is computed in the precision of the parameters.
    """

    def __init__(self, shape: SampleShape, settings: DiscriminatorConfig, precision: Precision = Precision()):  # noqa: B008
        super().__init__()
        self.precision = precision
        width, self.length, self.symbols = settings.width, settings.length, settings.symbols
        classes, inputs = shape.num_classes, width * self.length
        self.conv = Convolution(self.symbols, width, gain=self.symbols**0.5)  # one row of them is 1
        self.blocks = nn.Sequential(*(Block(width, settings.kernel, settings.blocks) for _ in range(settings.blocks)))
        self.dense = Linear(inputs, width if classes else 1, inputs**-0.5)
        self.embed = LabelLinear(classes, width, width**-0.5) if classes else None

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> Tensor:
        """samples: [N, 1, R, R] in [0, 1], labels: int64 [N] or None -> logits [N]."""
        x = self.dense(self.features(samples))
        return x[:, 0] if self.embed is None else (x * self.embed(labels)).sum(dim=1)

    def features(self, samples: Tensor) -> Tensor:
        """What the last layer sees: [N, 1, R, R] -> [N, width T]."""
        x = samples[:, 0, :self.symbols, :self.length].to(self.dense.weight.dtype)
        return rectified(self.blocks(self.conv(x))).flatten(1)
