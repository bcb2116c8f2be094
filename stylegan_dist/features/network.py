"""A feature network as metrics use it: features, logits and a perceptual distance of samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.features.inputs import Input, OwnSamples
from stylegan_dist.features.layers import Maps, Trunk
from stylegan_dist.kinds import Kind

NO_NETWORK = "no network"  # the name of `NoFeatures`
_EPSILON = 1e-10   # keeps the gradient of the length of a zero vector finite


@dataclass(frozen=True)
class Taught:
    """How a network of the user's own came about.

    Attributes:
        fingerprint: of the data whose labels it has learnt.
        accuracy: on samples of it that were held out.
        kind: of the data.
    """

    fingerprint: str
    accuracy: float
    kind: Kind


class FeatureNetwork:
    """Maps samples to features, deterministically.

    Samples go through the network in parts of a fixed size, the last one filled up. So the features of a sample are the same
    to the last bit in every batch on one machine, with one number of threads and one PyTorch. On a GPU that rests on
    cuDNN and cuBLAS treating the samples of a part alike, whichever place they have.

    Args:
        name: short, for the names of scores.
        sha256: of the file with the weights.
        device: where it computes; samples are brought there.
        taught: where it comes from, if it has learnt the labels of the user's own data.

    Attributes:
        resize: how samples are brought to the network's size, for keys of caches. Name, `sha256` and this decide the features.
        dtype: of samples. uint8 but for networks that were trained on other arrays.
        kind: of samples, where it was trained on the user's data; None where it takes pictures.
        dimensions: of the features.
        classes: of the classifier; 0: there is none.
    """

    def __init__(self, name: str, sha256: str, trunk: Trunk, samples: Input, device: torch.device | str,
                 taught: Taught | None = None):
        self.name, self.sha256, self.device, self.taught = name, sha256, torch.device(device), taught
        self._trunk, self._input = trunk.to(self.device), samples
        self.resize, self.dtype = samples.resize, samples.dtype
        self.kind = samples.kind if isinstance(samples, OwnSamples) else None
        self.dimensions, self.classes = trunk.dimensions, trunk.classes
        self._part = 1 if self.device.type == "cpu" else 64  # samples at a time; a CPU gains nothing by more

    def score_name(self, what: str) -> str:
        """The name of a score: "fd", "kid", "ppl", ... -> `kid_efflite0`.

        The Fréchet distance alone is called `fid`, and only for Inception with its resize, which define the FID.
        """
        return "fid" if (what, self.name) == ("fd", "inception") else f"{what}_{self.name}"

    def check(self, resolution: int, channels: int) -> None:
        """Raise InputError where samples of this form cannot be compared, and say what to do."""
        self._input.check((resolution, resolution), channels)

    def __call__(self, samples: Tensor) -> Tensor:
        """Features of samples: [N, C, H, W] of `dtype` -> float32 [N, dimensions].

        Raises:
            InputError: samples of this form cannot be compared.
        """
        if samples.dtype != self.dtype:
            raise InputError(f"the feature network {self.name} takes samples of {self.dtype}, not of {samples.dtype}: compare "
                             "such data with a network of its own, see `stylegan-dist train-features --help`")
        self._check(samples)
        with torch.no_grad():
            return self._in_parts(lambda part: self._trunk(self._input.from_samples(part)), samples)

    def logits(self, samples: Tensor) -> Tensor:
        """The classifier's logits of samples: float32 [N, classes].

        Raises:
            InputError: as of a call, or there is no classifier.
        """
        return self.classify(self(samples))

    def classify(self, features: Tensor) -> Tensor:
        """As `logits`, of features that are there already. Without a bias for Inception, as the inception score is defined."""
        if not self.classes:
            raise InputError(f"the feature network {self.name} has no classifier: take efficientnet-lite0, inception or one "
                             "that train-features has made for what needs classes")
        with torch.no_grad():
            return self._in_parts(self._trunk.classify, features)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """The perceptual distance of pairs of images: float32 [N]. Differentiable in both where gradients are enabled.

        The maps of several layers are normalised to length 1 over their channels. The squares of the differences are
        summed over channels and layers, and averaged over the pixels of a map (Zhang et al. 2018, equation 1, without
        learnt weights). No images are quantised: as path lengths need it.

        Args:
            first, second: [N, C, H, W] in the range of generators, [-1, 1]; or both uint8.
        Raises:
            InputError: samples of this form cannot be compared.
        """
        self._check(first)
        if first.shape != second.shape:
            raise ValueError(f"pairs of {list(first.shape)} and {list(second.shape)}")
        if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
            with exactly():
                return self._pairs(first.to(self.device), second.to(self.device))
        with torch.no_grad():
            return self._in_parts(self._pairs, first, second)

    def directions(self, samples: Tensor) -> Maps:
        """The maps that `distance` compares, of length 1 over their channels, for what is compared with many others.

        Args:
            samples: as of `distance`; differentiable in them.
        Raises:
            InputError: samples of this form cannot be compared.
        """
        self._check(samples)
        with exactly():
            return [_directions(x) for x in self._maps(samples.to(self.device))]

    def _pairs(self, first: Tensor, second: Tensor) -> Tensor:
        total = first.new_zeros(len(first), dtype=torch.float32)
        for a, b in zip(self._maps(first), self._maps(second), strict=True):
            total = total + _squares(_directions(a), _directions(b))
        return total

    def _maps(self, values: Tensor) -> Maps:
        maps: Maps = []
        quantised = values.dtype == torch.uint8 == self.dtype
        self._trunk(self._input.from_samples(values) if quantised else self._input.from_network(values), maps)
        return maps

    def _check(self, samples: Tensor) -> None:
        if samples.dim() != 4:
            raise ValueError(f"samples of {samples.dim()} dimensions instead of [N, C, H, W]")
        self._input.check((samples.shape[2], samples.shape[3]), samples.shape[1])

    def _in_parts(self, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """function(*values) by parts of one size, whose results do not depend on what else is in `values`."""
        count, results = len(values[0]), []
        with exactly():
            for begin in range(0, max(count, 1), self._part):
                part = [_filled(one[begin:begin + self._part].to(self.device), self._part) for one in values]
                results.append(function(*part)[:count - begin])
        return torch.cat(results)


class NoFeatures(FeatureNetwork):
    """In place of a feature network, where no score needs one: it takes any samples, and there are no features of them."""

    def __init__(self, device: torch.device | str):
        self.name, self.sha256, self.device, self.taught = NO_NETWORK, "0" * 64, torch.device(device), None
        self.resize, self.dtype, self.kind, self.dimensions, self.classes = "none", torch.uint8, None, 0, 0

    def check(self, resolution: int, channels: int) -> None:
        pass

    def __call__(self, samples: Tensor) -> Tensor:
        return torch.empty(len(samples), 0, device=self.device)


def between(first: Maps, second: Maps) -> Tensor:
    """`FeatureNetwork.distance` from the `directions` of both: float32 [N]."""
    return torch.stack([_squares(a, b) for a, b in zip(first, second, strict=True)]).sum(0)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(1).mean((1, 2))


def _filled(part: Tensor, size: int) -> Tensor:
    """A copy with zeros behind it up to so many samples, in one memory format: others may compute in another order."""
    filled = part.new_zeros(size, *part.shape[1:])
    filled[:len(part)] = part
    return filled


def _directions(x: Tensor) -> Tensor:
    return x * (x.square().sum(1, keepdim=True) + _EPSILON).rsqrt()


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Full float32 on GPUs, and always the same algorithms."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
