"""The motion code: what changes from frame to frame, as a function of noise and time. Times are in frames, whole or not.

Skorokhodov et al. 2022, section 3.1. No layer here has a bias: with one the network could leave the noise aside, and all clips
would move alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_dist import ops
from stylegan_dist.constants import constant
from stylegan_dist.families.stylegan_v.config import GeneratorConfig
from stylegan_dist.networks.layers import Draw

LR_MULTIPLIER = 0.01
_HARMONICS = (1, 2, 3, 4, -1, -2, -3, -4)   # of a code that loops


class _Layer(nn.Module):
    """Weights [out, in, kernel] of unit variance, without bias, with an equalised learning rate."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, lr_multiplier: float = 1.0):
        super().__init__()
        self.lr_multiplier = lr_multiplier
        self.gain = lr_multiplier / math.sqrt(inputs * kernel)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel))

    def init_parameters(self, draw: Draw) -> None:
        self.weight.copy_(draw("weight", self.weight.shape) / self.lr_multiplier)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, L] -> [N, out, L - kernel + 1]."""
        if self.weight.shape[2] == 1:
            return (self.weight[:, :, 0] * self.gain) @ x
        return F.conv1d(x, self.weight * self.gain)


class Motion(nn.Module):
    """Noise at anchors, `motion_distance` frames apart, and sines between them, so that the code never repeats.

    Between the anchors l and r, tau frames after l and at the share a = tau / distance of the way,

        v(t) = psi(tau) - lerp(psi(0), psi(distance), a) + lerp(A u_l, A u_r, a),
        psi(tau) = sin and cos of 2 pi (tanh(P u_l) + 1) tau / period + Q u_l,

    where u are the anchors' vectors after two convolutions over time. The paper counts the time in psi from the beginning of
    the clip. Here it is counted from the anchor: a later time is then like any other, and clips may be longer than those of
    the data.

    Attributes:
        width: of the code.
        start: frames within which the beginning of a clip is drawn, so that all places between anchors are alike.
    """

    def __init__(self, settings: GeneratorConfig):
        super().__init__()
        self.distance, self.z_dim = settings.motion_distance, settings.motion_z_dim
        self.kernel, self.slowest = settings.motion_kernel, max(settings.motion_slowest, settings.motion_distance)
        self.frequencies = settings.motion_frequencies
        self.width, self.start = 2 * settings.motion_frequencies, float(settings.motion_distance)
        dim = settings.motion_dim
        self.conv0 = _Layer(self.z_dim, dim, self.kernel, LR_MULTIPLIER)
        self.conv1 = _Layer(dim, dim, self.kernel, LR_MULTIPLIER)
        self.periods, self.phases = _Layer(dim, self.frequencies), _Layer(dim, self.frequencies)
        self.aligners = _Layer(dim, self.width)

    def noises(self, last: float) -> int:
        """How many noises clips need whose last time is `last`."""
        return int(last // self.distance) + 2 + 2 * (self.kernel - 1)

    def forward(self, noise: Tensor, times: Tensor) -> Tensor:
        """Codes [N, S, width].

        Args:
            noise: [N, noises, z_dim], standard normal.
            times: [N, S], from 0 on.
        """
        x = noise.transpose(1, 2).to(self.conv0.weight.dtype)
        for layer in (self.conv0, self.conv1):
            x = ops.bias_act(layer(x), None, "lrelu")
        times = times.to(x.dtype)
        left = (times / self.distance).floor()
        share = (times / self.distance - left)[:, None]
        one, other = _at(x, left.long()), _at(x, left.long() + 1)                 # [N, dim, S]
        speed = (self.periods(one).tanh() + 1) * _rates(self.frequencies, float(self.distance), float(self.slowest), x.device)
        phase = self.phases(one)
        now, begin, end = (_waves(speed * tau + phase) for tau in (share * self.distance, 0.0, float(self.distance)))
        code = now - begin.lerp(end, share) + self.aligners(one).lerp(self.aligners(other), share)
        return code.transpose(1, 2)


class LoopingMotion(nn.Module):
    """A Fourier series whose amplitudes and phases are made of noise: it loops after `loop_frames`, without a jump of any kind.

    Pair k of the code is (1 + tanh(A u)) / h^2 times sin and cos of 2 pi h t / loop_frames + Q u, with h = 1, 2, 3, 4, -1, -2,
    -3, -4 in turn. A clip can so turn either way, by the amplitudes of its noise. The divisor makes the motions that networks
    begin with slow: accelerations of all h are alike.

    Attributes: as of `Motion`.
    """

    def __init__(self, settings: GeneratorConfig):
        super().__init__()
        self.loop, self.z_dim, self.frequencies = settings.loop_frames, settings.motion_z_dim, settings.motion_frequencies
        self.width, self.start = 2 * settings.motion_frequencies, float(settings.loop_frames)
        dim = settings.motion_dim
        self.layer0 = _Layer(self.z_dim, dim, 1, LR_MULTIPLIER)
        self.layer1 = _Layer(dim, dim, 1, LR_MULTIPLIER)
        self.amplitudes, self.phases = _Layer(dim, self.frequencies), _Layer(dim, self.frequencies)

    def noises(self, last: float) -> int:
        return 1

    def forward(self, noise: Tensor, times: Tensor) -> Tensor:
        """As of `Motion`."""
        x = noise.transpose(1, 2).to(self.layer0.weight.dtype)
        for layer in (self.layer0, self.layer1):
            x = ops.bias_act(layer(x), None, "lrelu")
        angle = _harmonics(self.frequencies, x.device) * (times.to(x.dtype) / self.loop % 1)[:, None] + self.phases(x)
        amplitude = (self.amplitudes(x).tanh() + 1) / (_harmonics(self.frequencies, x.device) / (2 * math.pi)).square()
        return (_waves(angle) * torch.cat([amplitude, amplitude], 1)).transpose(1, 2)


def motion_of(settings: GeneratorConfig) -> Motion | LoopingMotion:
    """What the configuration asks for."""
    return LoopingMotion(settings) if settings.loop_frames else Motion(settings)


def _waves(angle: Tensor) -> Tensor:
    """[N, F, S] -> [N, 2 F, S]."""
    return torch.cat([angle.sin(), angle.cos()], 1)


def _at(x: Tensor, place: Tensor) -> Tensor:
    """x [N, C, K] at the places [N, S]: [N, C, S]."""
    return x.gather(2, place[:, None].expand(-1, x.shape[1], -1))


@constant
def _rates(count: int, fastest: float, slowest: float, device: torch.device) -> Tensor:
    """2 pi / period of periods from the shortest to the longest in equal ratios: [count, 1]."""
    exponents = torch.linspace(0, 1, count, dtype=torch.float64)
    return (2 * math.pi / (fastest * (slowest / fastest) ** exponents)).float()[:, None].to(device)


@constant
def _harmonics(count: int, device: torch.device) -> Tensor:
    """2 pi h, [count, 1]."""
    return (2 * math.pi * torch.tensor(_HARMONICS)[torch.arange(count) % len(_HARMONICS)].float())[:, None].to(device)
