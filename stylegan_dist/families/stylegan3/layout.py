"""The layers of StyleGAN3's synthesis network as numbers (Karras et al. 2021, sections 3.2 and 3.3, appendix B).

Frequencies are in cycles per width of the image. So a signal of s samples per width can hold frequencies below s / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_CUTOFF = 2.0
FIRST_STOPBAND = 2**2.1
LAST_STOPBAND = 2**0.3  # in units of the last cutoff, R / 2
CRITICAL = 2            # last layers with the full cutoff, R / 2
MARGIN = 10             # samples that are computed beyond each border of the image
FILTER_SIZE = 6         # taps of a filter per unit of its factor
LRELU_UP = 2            # the leaky ReLU sees twice the higher one of the rates before and after it


@dataclass(frozen=True)
class Signal:
    """A discrete signal that stands for a continuous one.

    Attributes:
        cutoff, half_width: of its low-pass filter; the transition band is cutoff +- half_width.
        rate: samples per width of the image.
        size: samples of a side, with margins.
        channels: feature maps.
    """

    cutoff: float
    half_width: float
    rate: int
    size: int
    channels: int


@dataclass(frozen=True)
class Layer:
    """A convolution and a filtered leaky ReLU. toRGB is one of these without filters: `up` and `down` are 1.

    Attributes:
        before, after: the signals.
        kernel: of the convolution, which makes a signal larger by kernel - 1 samples.
        critical: whether `after` is critically sampled.
        rgb: whether this is toRGB.
    """

    before: Signal
    after: Signal
    kernel: int
    critical: bool
    rgb: bool = False

    @property
    def rate(self) -> int:
        """Samples per width that the leaky ReLU sees."""
        return max(self.before.rate, self.after.rate) * (1 if self.rgb else LRELU_UP)

    @property
    def up(self) -> int:
        return self.rate // self.before.rate

    @property
    def down(self) -> int:
        return self.rate // self.after.rate

    @property
    def taps(self) -> tuple[int, int]:
        """Of the filters before and after the leaky ReLU."""
        return (1, 1) if self.rgb else (FILTER_SIZE * self.up, FILTER_SIZE * self.down)

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side of the up-sampled signal, such that `after` comes out centred."""
        total = (self.after.size - 1) * self.down + 1 - (self.before.size + self.kernel - 1) * self.up + sum(self.taps) - 2
        low = (total + self.up) // 2
        return low, total - low


def layers_of(resolution: int, img_channels: int, channel_base: int, channel_max: int, kernel: int, layers: int) -> list[Layer]:
    """All layers, toRGB at the end.

    Args:
        layers: how many there are before toRGB.
    """
    signals, last = [], resolution / 2
    for i in range(layers + 1):
        progress = min(i / (layers - CRITICAL), 1)
        cutoff = FIRST_CUTOFF * (last / FIRST_CUTOFF) ** progress
        stopband = FIRST_STOPBAND * (last * LAST_STOPBAND / FIRST_STOPBAND) ** progress
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, resolution)))
        size = resolution if i > layers - CRITICAL else rate + 2 * MARGIN
        channels = img_channels if i == layers else round(min(channel_base / 2 / cutoff, channel_max))
        signals.append(Signal(cutoff, max(stopband, rate / 2) - cutoff, rate, size, channels))
    return [Layer(signals[max(i - 1, 0)], signals[i], 1 if i == layers else kernel, i >= layers - CRITICAL, i == layers)
            for i in range(layers + 1)]
