"""Samples by number: the same ones whatever else is drawn, on any number of ranks and on any day."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from stylegan_dist import randomness
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.errors import InputError
from stylegan_dist.features.network import FeatureNetwork
from stylegan_dist.kinds import Array, Clip, Kind, Text
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.metrics import MOST_SHIFT, gather_features, path_lengths, rotation_errors, translation_errors
from stylegan_dist.networks.generator import Generator, Sampling, motion
from stylegan_dist.ranks import Ranks
from stylegan_dist.training.memory import is_out_of_memory

# Samples that are computed at once: numbers [32 k, 32 k + 32). Sums in networks are rounded in another way for another number,
# so this is no option.
BATCH = 32
PATH_PIXELS = 256  # of a side of the images whose distances are path lengths, at most (Karras et al. 2019, section 4.1)


T = TypeVar("T")


class Stopped(Exception):
    """A rank was asked to stop; all ranks raise it."""


def in_memory(function: Callable[..., T], *arguments: object) -> T:
    """Call a function; that there is too little memory for it is an InputError, which does not end a training."""
    try:
        return function(*arguments)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"there is too little memory for scores ({str(error).strip().partition(chr(10))[0]}): give a smaller "
                         "count, or let a process with memory of its own do it, stylegan-dist evaluate --watch") from None


def labels_by_frequency(seed: int, index: Tensor, counts: Sequence[int]) -> Tensor:
    """Labels int64 [n] with the frequencies of the data, by sample number."""
    ends = torch.tensor(counts, dtype=torch.int64, device=index.device).cumsum(0)
    number = randomness.integers(seed, "evaluate.label", index, int(ends[-1]))[:, 0]
    return torch.searchsorted(ends, number, right=True)


def takes_samples(network: FeatureNetwork, kind: Kind) -> bool:
    """Whether a feature network takes samples of the data as they are, and not pictures of them."""
    if isinstance(kind, Clip) and not isinstance(network.kind, Clip):
        return False  # it sees single frames
    return str(network.dtype) == f"torch.{kind.dtype}"


def is_of_another_form(one: Kind, other: Kind) -> bool:
    """Whether samples that may have the same shape mean something else: another kind, spectrograms made in another way, latents
    of another autoencoder, another alphabet, clips of more or fewer frames."""
    if type(one) is not type(other):
        return True
    return isinstance(one, Array) and isinstance(other, Array) and _meaning(one) != _meaning(other)


def _meaning(kind: Array) -> tuple[object, ...]:
    text = kind.text and (kind.text.symbols, kind.text.length)
    return kind.log_mel, kind.spectrum, kind.encoder, text, kind.film and kind.film.frames


def pictures_for(network: FeatureNetwork, kind: Kind, values: Tensor) -> Tensor:
    """Values [n, C, H, W] in the range of generators, as a feature network takes them: samples of the data, or pictures."""
    if takes_samples(network, kind):
        return kind.from_network(values)
    return to_uint8(kind.as_pictures(values))


def check_takes(network: FeatureNetwork, index: DatasetIndex) -> None:
    """Raise InputError where a feature network does not take the samples of a set, or what they are shown as."""
    if network.dimensions and isinstance(index.kind, Text) and not isinstance(network.kind, Text):
        raise InputError(f"the feature network {network.name} looks at pictures, and the data are {index.kind.noun}: take "
                         "one that has learnt such data (train-features; of label: --run), or the scores of the data itself")
    zeros = torch.zeros(1, index.channels, index.resolution, index.resolution)
    _, channels, _, side = pictures_for(network, index.kind, zeros).shape
    network.check(side, channels)


@dataclass(frozen=True)
class GeneratedSamples:
    """Samples of a generator by their numbers, int64 [n], on the device of these.

    Attributes:
        counts: samples of each class in the data; None for data without classes.
    """

    generator: Generator
    seed: int
    counts: Sequence[int] | None = None

    def labels(self, index: Tensor) -> Tensor | None:
        """int64 [n]; None for an unconditional generator, or data without classes."""
        return labels_by_frequency(self.seed, index, self.counts) if self.counts and self.generator.num_classes else None

    @torch.no_grad()
    def values(self, index: Tensor) -> Tensor:
        """[n, C, H, W] in the range of generators."""
        return self.generator.sample(self.seed, "evaluate", index, self.labels(index), Sampling(batch=BATCH))

    @torch.no_grad()
    def path_lengths(self, index: Tensor, kind: Kind, network: FeatureNetwork) -> Tensor:
        """Lengths [n], float32, of the beginnings of paths between pairs of latents, by the numbers of the pairs.

        A pair has one label. Layer noise is constant. Images of more than 256 pixels are averaged down to that.
        """
        labels = self.labels(index)

        def synthesize(latents: Tensor) -> Tensor:
            values = self.generator.synthesize(latents, labels)
            values = values if takes_samples(network, kind) else kind.as_pictures(values)
            factor = max(1, values.shape[-1] // PATH_PIXELS)
            return functional.avg_pool2d(values, factor)

        first, second = (self.generator.latents(self.seed, f"evaluate.path{end}", index, labels) for end in (0, 1))
        return path_lengths(first, second, synthesize, network.distance).float()

    @torch.no_grad()
    def motion_errors(self, index: Tensor, metric: str) -> Tensor:
        """Rows [n, 2] for `metrics.equivariance_score`, of the samples and a motion for each number.

        Args:
            metric: "eq_t", "eq_t_frac" or "eq_r".
        """
        generator, seed, labels = self.generator, self.seed, self.labels(index)
        latents = generator.latents(seed, "evaluate", index, labels)
        images = generator.synthesize(latents, labels)
        nothing = torch.zeros(len(index), 2, device=index.device)
        if metric == "eq_r":
            angle = (2 * randomness.uniform(seed, "evaluate.rotation", index)[:, 0] - 1) * math.pi
            return rotation_errors(images, generator.moved(latents, labels, motion(nothing, angle)), angle)
        pixels = (2 * randomness.uniform(seed, "evaluate.translation", index, 2) - 1) * MOST_SHIFT * images.shape[3]
        pixels = pixels.round() if metric == "eq_t" else pixels
        moved = generator.moved(latents, labels, motion(pixels / images.shape[3], nothing[:, 0]))
        return translation_errors(images, moved, pixels)


def gather_rows(count: int, width: int, compute: Callable[[int, int], Tensor], ranks: Ranks,
                progress: Callable[[int], object], stop: Callable[[], bool] = lambda: False) -> Tensor:
    """Rows [count, width], float32 on the CPU, of which each rank computes its batches. All ranks must call it, and get all.

    Args:
        compute: (first, length) -> rows [length, width].
        progress: is told how many more are known.
        stop: whether this rank was asked to stop.
    Raises:
        Stopped: any rank was.
        InputError: `compute` has failed on any rank, or there was too little memory. All ranks raise it: one that went on
            alone would meet the others in another collective.
    """
    rows, step = ranks.together(lambda: in_memory(torch.empty, count, width)), BATCH * ranks.world_size
    for start in range(0, count, step):
        end = min(start + step, count)
        first = min(start + ranks.rank * BATCH, end)
        last = min(first + BATCH, end)
        if float(ranks.sum(torch.tensor(float(stop()), device=ranks.device))):
            raise Stopped
        nothing = partial(torch.empty, 0, width, device=ranks.device)
        part = ranks.together(partial(in_memory, compute, first, last - first) if last > first else nothing)
        rows[start:end] = gather_features(part, first - start, end - start, ranks).cpu()
        progress(end - start)
    return rows
