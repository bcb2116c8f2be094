"""The StyleGAN3 generator: Karras et al. 2021, "Alias-free generative adversarial networks".

Its signals are continuous functions that samples stand for. Every layer is equivariant to translations of the plane, and in
configuration R to rotations, up to what its filters let through. So what the Fourier features at the input do, the image does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stylegan_dist import ops
from stylegan_dist.families.stylegan3.config import GeneratorConfig
from stylegan_dist.families.stylegan3.filters import low_pass, radial_low_pass
from stylegan_dist.families.stylegan3.layout import FIRST_CUTOFF, Layer, Signal, layers_of
from stylegan_dist.networks.generator import Generator as SampleGenerator
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.networks.layers import Dense, Draw, MappingNetwork, Precision, run_block
from stylegan_dist.ops.resample import in_format_of

RGB_GAIN = 0.25  # a factor on the images of toRGB, as published


class Motion(Dense):
    """w [N, w_dim] to a rotation and a translation of the input, [N, 4]: (cos, sin, x, y) up to a factor. Begins as none."""

    def __init__(self, w_dim: int):
        super().__init__(w_dim, 4)

    def init_parameters(self, draw: Draw) -> None:
        self.weight.zero_()
        self.bias.copy_(self.bias.new_tensor([1.0, 0.0, 0.0, 0.0]))


class FourierFeatures(nn.Module):
    """Waves of fixed frequencies, mixed: w [N, w_dim] -> [N, channels, size, size] (section 3.1, appendix F)."""

    frequencies: Tensor  # [channels, 2], cycles per width in x and y; uniform in a disc
    phases: Tensor       # [channels], in cycles
    transform: Tensor    # [3, 3], from coordinates of the image to those of its content; a user may set it

    def __init__(self, signal: Signal, w_dim: int):
        super().__init__()
        self.signal = signal
        channels = signal.channels
        self.motion = Motion(w_dim)
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.register_buffer("frequencies", torch.empty(channels, 2))
        self.register_buffer("phases", torch.empty(channels))
        self.register_buffer("transform", torch.eye(3))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape))
        # exp(-|n|^2 / 2) of two normal numbers is uniform in [0, 1): it is the share of the disc's area inside the radius.
        normal = draw("frequencies", self.frequencies.shape)
        length = normal.norm(dim=1, keepdim=True)
        self.frequencies.copy_(normal / length * (-length.square() / 4).exp() * FIRST_CUTOFF)
        normal = draw("phases", torch.Size((len(self.phases), 2)))
        self.phases.copy_(torch.atan2(normal[:, 0], normal[:, 1]) / (2 * math.pi))  # uniform in [-1/2, 1/2)

    def forward(self, w: Tensor, transform: Tensor | None = None) -> Tensor:
        """transform: [3, 3] or [N, 3, 3], in place of the buffer."""
        signal, full = self.signal, self.weight.dtype
        # Places in the image to places in the content: the user's transform first, then what w says.
        motion = self.motion(w)
        cos, sin, x, y = (motion / motion[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).unflatten(1, (3, 3))
        translation = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], 1).unflatten(1, (3, 3))
        matrix = rotation @ translation @ (self.transform if transform is None else transform.to(full))

        frequencies = self.frequencies @ matrix[:, :2, :2]                         # [N, channels, 2]
        phases = self.phases + (self.frequencies @ matrix[:, :2, 2:])[:, :, 0]     # [N, channels]
        # A user's transform can make frequencies too high for the samples: those fade out.
        fade = (frequencies.norm(dim=2) - signal.cutoff) / (signal.rate / 2 - signal.cutoff)
        amplitudes = (1 - fade).clamp(0, 1)
        line = (torch.arange(signal.size, device=w.device, dtype=full) + 0.5 - signal.size / 2) / signal.rate
        places = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).flatten(0, 1)  # [size^2, 2]: x, y
        waves = torch.sin(2 * math.pi * (places @ frequencies.transpose(1, 2) + phases[:, None])) * amplitudes[:, None]
        mixed = waves @ (self.weight / len(self.weight) ** 0.5).t()
        return mixed.unflatten(1, (signal.size, signal.size)).permute(0, 3, 1, 2)


class SynthesisLayer(nn.Module):
    """Modulated convolution and filtered leaky ReLU: [N, in, H, W] -> [N, out, H', W'] (sections 3.2 and 3.3).

    The last layer, toRGB, is without demodulation, filters and nonlinearity.

    Args:
        radial: the filter after the leaky ReLU commutes with rotations.
    """

    def __init__(self, layer: Layer, w_dim: int, radial: bool, precision: Precision):
        super().__init__()
        self.layer, self.radial, self.precision = layer, radial, precision
        inputs, outputs = layer.before.channels, layer.after.channels
        self.affine = Dense(w_dim, inputs, bias_init=1.0)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, layer.kernel, layer.kernel))
        self.bias = nn.Parameter(torch.empty(outputs))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape))
        self.bias.zero_()

    def forward(self, x: Tensor, w: Tensor, gain: Tensor, dtype: torch.dtype, measure: bool) -> tuple[Tensor, Tensor | None]:
        """The signal after this layer, and the mean square of the one before, [N], if that is to be measured.

        Args:
            x: [N, in, H, W] in any dtype.
            w: [N, w_dim].
            gain: [], of the input.
            dtype: to compute in.
        """
        energy = x.float().square().mean(dim=(1, 2, 3)) if measure else None
        layer, style = self.layer, self.affine(w)
        weight: Tensor = self.weight
        if layer.rgb:
            style, demodulation = style / weight.shape[1] ** 0.5, None
        else:
            # Demodulation takes the norms of style and weight out again, except beside its 1e-8. They are one here, so that
            # products fit into 16 bits. The style's norm is that of a sample, not of a batch.
            style = style * style.square().mean(dim=1, keepdim=True).rsqrt()
            weight = weight * weight.square().sum(dim=(1, 2, 3), keepdim=True).rsqrt()
            norm2 = style.square() @ weight.square().sum(dim=(2, 3)).t()
            demodulation = (norm2 + 1e-8 / weight[0].numel()).rsqrt()
        x = self.precision.place(x, dtype) * (style * gain).to(dtype)[:, :, None, None]
        x = ops.conv2d(x, in_format_of(x, weight.to(dtype)), padding=layer.kernel - 1)
        if demodulation is not None:
            x = x * demodulation.to(dtype)[:, :, None, None]
        clamp = self.precision.clamp
        if layer.rgb:
            return ops.filtered_lrelu(x, self.bias, ops.Filters(), gain=1.0, slope=1.0, clamp=clamp), energy
        filters = ops.Filters(*self.filters(x.device), layer.up, layer.down, layer.padding)
        return ops.filtered_lrelu(x, self.bias, filters, clamp=clamp), energy

    def filters(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Before and after the leaky ReLU: float32 [taps], the second one [taps, taps] where it is radial."""
        before, after, (up, down) = self.layer.before, self.layer.after, self.layer.taps
        design = radial_low_pass if self.radial else low_pass
        return (low_pass(up, before.cutoff, before.half_width, self.layer.rate, device),
                design(down, after.cutoff, after.half_width, self.layer.rate, device))


class SynthesisNetwork(nn.Module):
    """w to images.

    Args:
        shape: resolution a power of two, at least 8.
        settings: resolved.
        rotates: configuration R: 1x1 convolutions and radial filters.
        recompute: layers with this many samples per width and more compute their activations again in the backward pass;
            0 for none.
    """

    magnitudes: Tensor  # [layers + 1], running mean squares of the layers' inputs

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, rotates: bool, precision: Precision, recompute: int):
        super().__init__()
        self.resolution, self.precision, self.recompute = shape.resolution, precision, recompute
        found = layers_of(shape.resolution, shape.channels, settings.channel_base, settings.channel_max,
                          1 if rotates else 3, settings.layers)
        self.num_ws = len(found) + 1
        self.rates = [layer.after.rate for layer in found]
        self.input = FourierFeatures(found[0].before, settings.w_dim)
        self.layers = nn.ModuleList(SynthesisLayer(layer, settings.w_dim, rotates and not layer.critical, precision)
                                    for layer in found)
        self.register_buffer("magnitudes", torch.ones(len(found)))

    def forward(self, ws: Tensor, transform: Tensor | None = None) -> Tensor:
        """Images [N, C, R, R] in the precision of the parameters, nominally in [-1, 1].

        Args:
            ws: [N, num_ws, w_dim].
            transform: [3, 3] or [N, 3, 3], of the input, in place of its buffer.
        """
        return self._run(ws, transform, measure=False)[0]

    def measured(self, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Images, and the mean squares of the inputs of each layer: [N, layers + 1]."""
        images, energies = self._run(ws, None, measure=True)
        return images, torch.stack(energies, dim=1)

    def _run(self, ws: Tensor, transform: Tensor | None, measure: bool) -> tuple[Tensor, list[Tensor]]:
        w, full = ws.unbind(dim=1), ws.dtype
        gains, energies = self.magnitudes.rsqrt().unbind(), []
        x = self.input(w[0], transform)
        for i, (block, rate) in enumerate(zip(self.layers, self.rates, strict=True)):
            dtype = self.precision.of_block(rate, self.resolution, full)
            x, energy = run_block(block, 0 < self.recompute <= rate, x, w[i + 1], gains[i], dtype, measure)
            energies.append(energy)
        return x.to(full) * RGB_GAIN, energies


class Generator(SampleGenerator):
    """Mapping and synthesis. Its latents are w.

    Args:
        shape, settings, rotates, recompute: as of `SynthesisNetwork`.
    """

    w_avg: Tensor  # [w_dim], running mean of w

    def __init__(self, shape: SampleShape, settings: GeneratorConfig, rotates: bool, precision: Precision = Precision(),  # noqa: B008
                 recompute: int = 0):
        super().__init__()
        self.z_dim, self.num_classes = settings.z_dim, shape.num_classes
        self.mapping = MappingNetwork(settings.z_dim, shape.num_classes, settings.w_dim, settings.mapping_layers)
        self.synthesis = SynthesisNetwork(shape, settings, rotates, precision, recompute)
        self.num_ws = self.synthesis.num_ws
        self.register_buffer("w_avg", torch.zeros(settings.w_dim))

    def styles(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """ws [N, num_ws, w_dim] of latents z [N, z_dim]: the same w for all layers."""
        return self.mapping(z, labels)[:, None].expand(-1, self.num_ws, -1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images of latents z [N, z_dim] and labels int64 [N]."""
        return self.synthesis(self.styles(z, labels))

    def map(self, z: Tensor, labels: Tensor | None, truncation: float | Tensor = 1.0) -> Tensor:
        """w [N, w_dim]."""
        w = self.mapping(z, labels)
        return w if not isinstance(truncation, Tensor) and truncation == 1 else self.w_avg.lerp(w, truncation)

    def synthesize(self, latents: Tensor, labels: Tensor | None, noise: str | Sequence[Tensor] = "const") -> Tensor:
        return self.synthesis(self._placed(latents))

    def moved(self, latents: Tensor, labels: Tensor | None, transform: Tensor) -> Tensor:
        return self.synthesis(self._placed(latents), transform)

    def style_matrices(self) -> list[tuple[int, Tensor]]:
        """Of the layers, toRGB among them; the first place moves the input, which is no style."""
        layers = [module for module in self.synthesis.layers if isinstance(module, SynthesisLayer)]
        return [(place, layer.affine.weight.detach() * layer.affine.weight_gain) for place, layer in enumerate(layers, 1)]

    def stage_of(self, name: str) -> int | list[int] | None:
        """The samples per width of a layer."""
        if name == "synthesis.magnitudes":
            return self.synthesis.rates
        layer = name.removeprefix("synthesis.layers.").split(".")[0]
        return self.synthesis.rates[int(layer)] if layer.isdecimal() else None

    def _placed(self, latents: Tensor) -> Tensor:
        """ws [N, num_ws, w_dim] of w [N, w_dim] or ws."""
        return latents if latents.dim() == 3 else latents[:, None].expand(-1, self.num_ws, -1)
