"""The DCGAN generator and discriminator.

Radford et al. 2015, "Unsupervised representation learning with deep convolutional generative adversarial networks", section 3:
strided convolutions, and batch normalisation (Ioffe and Szegedy 2015) but in the generator's last layer and the
discriminator's first one. Batch normalisation ties images together. Here the images of a *group* are, which are consecutive
ones, so that the result does not depend on how a batch is split over ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_dist.families.dcgan.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.networks.generator import SampleShape, UniformLatents
from stylegan_dist.networks.layers import (
    MIN_RESOLUTION,
    Draw,
    LabelLinear,
    Linear,
    Precision,
    channels_at,
    resolutions,
    run_block,
)
from stylegan_dist.ops import native
from stylegan_dist.ops.bias_act import LRELU_SLOPE
from stylegan_dist.ops.convolution import conv2d, conv_transpose2d

INIT_STD = 0.02
EPS = 1e-5            # of batch normalisation
STANDING_GROUPS = 16  # over which the statistics for inference are averaged, as Brock et al. 2019 do


class Convolution(nn.Module):
    """Convolution to half the size, without bias: [N, in, 2H, 2W] -> [N, out, H, W]; with `up` its transpose, to twice it.

    The weights are cast to the dtype of the input.

    Args:
        kernel: 4 or 5.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, up: bool = False):
        super().__init__()
        self.up = up
        channels = (in_channels, out_channels) if up else (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(*channels, kernel, kernel))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape) * INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        weight, odd = self.weight.to(x.dtype), self.weight.shape[-1] % 2
        if not self.up:
            return conv2d(x, weight, stride=2, padding=2 if odd else 1)
        # A kernel of 5 is centred on every second pixel, from the first one; padding 1 leaves a row and column before that.
        x = conv_transpose2d(x, weight, stride=2, padding=1)
        return x[:, :, 1:, 1:] if odd else x


class GroupBatchNorm(nn.Module):
    """Batch normalisation of each group of consecutive images by itself: [N, C, H, W] -> the same.

    y = gain (x - mean) / sqrt(variance + eps) + bias, with mean and biased variance of each channel over the images and
    pixels of a group. With one group it is batch normalisation in training. Computed in the precision of the parameters.

    Args:
        number: of the layer in its network.
        group: images of a group; N must be a multiple.
    """

    def __init__(self, channels: int, number: int, group: int):
        super().__init__()
        self.number = number
        self.group = group
        self.gain = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def init_parameters(self, draw: Draw) -> None:
        self.gain.copy_(1 + draw("gain", self.gain.shape) * INIT_STD)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) % self.group == 0, "the micro-batch must be a multiple of the group of batch normalisation"
        # Each group by a call of its own: its bits cannot depend on which others are there.
        parts = [F.batch_norm(part, None, None, self.gain, self.bias, training=True, eps=EPS)
                 for part in x.to(self.gain.dtype).split(self.group)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(x.dtype)

    def normalize(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """The same with given means and variances [C]."""
        return F.batch_norm(x.to(self.gain.dtype), mean, variance, self.gain, self.bias, training=False, eps=EPS).to(x.dtype)


Norm = Callable[[GroupBatchNorm, Tensor], Tensor]  # normalises the input of a layer


def normalize_groups(layer: GroupBatchNorm, x: Tensor) -> Tensor:
    """As in training."""
    return layer(x)


class GeneratorStage(nn.Module):
    """Transposed convolution; but in the last stage normalisation and ReLU: [N, in, H, W] -> [N, out, 2H, 2W]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, norm: GroupBatchNorm | None):
        super().__init__()
        self.conv = Convolution(in_channels, out_channels, kernel, up=True)
        self.norm = norm

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else F.relu(norm(self.norm, x))


class DiscriminatorStage(nn.Module):
    """Convolution; but in the first stage normalisation; leaky ReLU: [N, in, 2H, 2W] -> [N, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, norm: GroupBatchNorm | None):
        super().__init__()
        self.conv = Convolution(in_channels, out_channels, kernel)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.leaky_relu(x if self.norm is None else self.norm(x), LRELU_SLOPE)


class Generator(UniformLatents):
    """Latents z and class labels to images.

    `forward` normalises by the statistics of groups, in training. `synthesize` uses standing statistics: those of these
    weights on fixed latents. A sample is therefore a function of its latent and the weights, whatever else is in the batch.

    Args:
        shape: resolution a power of two, from 8.
        settings: resolved.
        recompute: stages whose images or features have this resolution or more compute their activations again in the backward
            pass instead of storing them, which changes no bit of the result; 0 for none.
    """

    z_limit = 1.0

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, precision: Precision = Precision(),  # noqa: B008 - frozen
                 recompute: int = 0):
        super().__init__()
        native.prepare()
        self.z_dim = settings.z_dim
        self.num_classes = shape.num_classes
        self.resolutions = resolutions(shape.resolution)
        self.precision = precision
        self.recompute = recompute
        self.embed = LabelLinear(shape.num_classes, settings.class_dim, INIT_STD) if shape.num_classes else None
        widths = [channels_at(r, settings) for r in self.resolutions[:-1]]
        norms = [GroupBatchNorm(width, i, settings.norm_group) for i, width in enumerate(widths)]
        inputs = settings.z_dim + (settings.class_dim if shape.num_classes else 0)
        self.dense = Linear(inputs, widths[0] * MIN_RESOLUTION**2, INIT_STD)
        self.norm = norms[0]
        for r, before, width, norm in zip(self.resolutions[1:], widths, [*widths[1:], shape.channels], [*norms[1:], None],
                                          strict=True):
            setattr(self, f"b{r}", GeneratorStage(before, width, settings.kernel, norm))
        self._standing: tuple[list, list[tuple[Tensor, Tensor]]] = [], []

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: [N, z_dim], labels: int64 [N] or None -> images [N, C, R, R] in (-1, 1); N a multiple of the group."""
        return self._render(z, labels, normalize_groups)

    def synthesize(self, latents: Tensor, labels: Tensor | None, noise: str | Sequence[Tensor] = "const") -> Tensor:
        standing = self.standing()
        return self._render(latents, labels, lambda layer, x: layer.normalize(x, *standing[layer.number]))

    @torch.no_grad()
    def standing(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and variance [C] for each normalisation: the averages over 16 groups of images of fixed latents.

        They are a function of the weights, kept until these change. Labels, if there are any, take turns.
        """
        if torch.compiler.is_compiling() and self._standing[1]:
            return self._standing[1]  # constants of the graph, of the call before it
        weights = [(p.data_ptr(), p._version) for p in self.parameters()]
        if self._standing[0] != weights:
            sums: dict[int, tuple[Tensor, Tensor]] = {}

            def measure(layer: GroupBatchNorm, x: Tensor) -> Tensor:
                variance, mean = torch.var_mean(x.to(layer.gain.dtype), (0, 2, 3), correction=0)
                before = sums.get(layer.number, (0, 0))
                sums[layer.number] = before[0] + mean / STANDING_GROUPS, before[1] + variance / STANDING_GROUPS
                return layer(x)

            for number in range(STANDING_GROUPS):
                index = torch.arange(self.norm.group, device=self.norm.gain.device) + number * self.norm.group
                labels = index % self.num_classes if self.num_classes else None
                self._render(self.draw(0, "dcgan.standing", index), labels, measure)
            self._standing = weights, [sums[i] for i in range(len(sums))]
        return self._standing[1]

    def _render(self, z: Tensor, labels: Tensor | None, norm: Norm) -> Tensor:
        full = self.dense.weight.dtype
        z = z.to(full)
        if self.embed is not None:
            z = torch.cat([z, self.embed(labels)], dim=1)
        x = F.relu(norm(self.norm, self.dense(z).unflatten(1, (-1, MIN_RESOLUTION, MIN_RESOLUTION))))
        for r in self.resolutions[1:]:
            x = self.precision.place(x, self.precision.of_block(r, self.resolutions[-1], full))
            x = run_block(partial(getattr(self, f"b{r}"), norm=norm), 0 < self.recompute <= r, x)
        return torch.tanh(x.to(full))


class Discriminator(nn.Module):
    """Images to logits: [N, C, R, R] -> [N]; N a multiple of the group.

    With classes the logit has one more summand, the scalar product of the features, added up over the pixels, with an
    embedding of the label (Miyato and Koyama 2018).

    Args:
        settings: resolved.
        recompute: as of the generator.
    """

    def __init__(self, shape: SampleShape, settings: DiscriminatorConfig, precision: Precision = Precision(),  # noqa: B008
                 recompute: int = 0):
        super().__init__()
        native.prepare()
        self.num_classes = shape.num_classes
        self.resolutions = resolutions(shape.resolution)[::-1]
        self.precision = precision
        self.recompute = recompute
        before = shape.channels
        for i, r in enumerate(self.resolutions[:-1]):
            width = channels_at(r // 2, settings)
            norm = GroupBatchNorm(width, i, settings.norm_group) if i else None
            setattr(self, f"b{r}", DiscriminatorStage(before, width, settings.kernel, norm))
            before = width
        self.dense = Linear(before * MIN_RESOLUTION**2, 1, INIT_STD)
        self.embed = LabelLinear(shape.num_classes, before, INIT_STD) if shape.num_classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: [N, C, R, R] in [-1, 1], labels: int64 [N] or None -> logits [N], full precision."""
        full, x = self.dense.weight.dtype, images
        for r in self.resolutions[:-1]:
            x = self.precision.place(x, self.precision.of_block(r, self.resolutions[0], full))
            x = run_block(getattr(self, f"b{r}"), 0 < self.recompute <= r, x)
        x = x.to(full)
        logits = self.dense(x.flatten(1))[:, 0]
        if self.embed is None:
            return logits
        return logits + (x.sum(dim=(2, 3)) * self.embed(labels)).sum(dim=1)
