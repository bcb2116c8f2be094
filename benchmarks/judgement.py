"""What are scores worth? Those of spoiled real images against real ones, and two checks of the numbers.

    python benchmarks/judgement.py shards/cifar10
    python benchmarks/judgement.py shards/cifar10 --network inception --count 5000

SHARDS are images with labels, 5 N of them at least for `--count N`. The first 5 N of a shuffled order are used, which is how an
evaluation takes its real samples. The first N are the reference. One row a set of N images that is compared with it:

    reals             the next N
    missing classes   of the first half of the classes only, none of the reference
    blur              the next N, Gaussian of sigma 0.5 pixels
    repeated          N / 10 of the next N, ten times each
    JPEG              the next N, quality 20
    noise             the next N, normal noise of standard deviation 8 of 255

Then whether the scores put all but `repeated` in that order. Then the Fréchet distance of two disjoint sets of n reals, the
mean of as many pairs as there are, beside `metrics.frechet_bias` with the covariance of all 5 N. Then, where it can be
imported, how far torch-fidelity's functions are from ours on the same features.

The network sees 8 N images. Their features are kept in the user's cache, so that the second time is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import itertools
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from stylegan_dist import randomness
from stylegan_dist.data.index import DatasetIndex, load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.reals import BLOCK, LANES, RealSamples
from stylegan_dist.evaluation.samples import BATCH
from stylegan_dist.evaluation.scores import Rows
from stylegan_dist.features.network import FeatureNetwork
from stylegan_dist.features.registry import DEFAULT, open_features
from stylegan_dist.files import replacing
from stylegan_dist.metrics import (
    ManifoldScores,
    Moments,
    frechet_bias,
    frechet_distance,
    kernel_distance,
    manifold_scores,
)
from stylegan_dist.private import user_folder
from stylegan_dist.ranks import ALONE

ORDER = ("reals", "missing classes", "blur", "JPEG", "noise")
SIGMA, QUALITY, DEVIATION, TIMES = 0.5, 20, 8, 10
VERSION = 1  # of what is done to images
EQUAL = 1e-6  # relative

Spoil = Callable[[Tensor, int], Tensor]  # uint8 [n, C, H, W], number of the first -> uint8 of the same shape


@dataclass(frozen=True)
class Row:
    frechet: float
    kernel: float
    kernel_error: float
    manifold: ManifoldScores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="SHARDS")
    parser.add_argument("--network", default=DEFAULT, help="of features: a name or a path (default: %(default)s)")
    parser.add_argument("--count", metavar="N", type=int, default=2000, help="images of each set (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    try:
        measure(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> None:
    index, count = load_index(args.shards), args.count
    network = open_features(args.network, args.device)
    if network.dtype != torch.uint8 or index.kind.dtype != "uint8" or not index.num_classes:
        raise InputError(f"{args.shards} must be 8-bit images with labels, and {args.network} a network for such images")
    network.check(index.resolution, index.channels)
    if count % TIMES or not TIMES <= count <= index.num_samples // 5:
        raise InputError(f"--count {count} must be a multiple of {TIMES}, from {TIMES} to a fifth of the "
                         f"{index.num_samples} samples of {args.shards}")
    with tqdm(total=5 * count, desc="reals", unit="img", disable=None) as bar:
        rows = RealSamples(index, None, ALONE, bar.update).features(5 * count, network)
    sets, real = variants(index, rows, count, network), rows.features
    reference = real[:count]
    print(f"{count} images of {index.resolution} pixels against {count} others; {network.name}, {network.dimensions} features; "
          f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads of {platform.machine()}\n")
    print(f"{'set':<16}{'FD':>9}{'1000 KID':>10}{'error':>8}{'precision':>11}{'recall':>8}{'coverage':>10}")
    scores = {}
    for name, features in sets.items():
        kernel = kernel_distance(reference, features)
        scores[name] = row = Row(frechet_distance(reference, features), kernel.value, kernel.error,
                               manifold_scores(reference, features))
        print(f"{name:<16}{row.frechet:>9.2f}{1000 * row.kernel:>10.3f}{1000 * row.kernel_error:>8.3f}"
              f"{row.manifold.precision:>11.3f}{row.manifold.recall:>8.3f}{row.manifold.coverage:>10.3f}", flush=True)
    print()
    judge(scores)
    compare_with_formula(real)
    compare_with_fidelity(reference, sets, scores)


def variants(index: DatasetIndex, real: Rows, count: int, network: FeatureNetwork) -> dict[str, Tensor]:
    """Features of the sets by their names, [n, d]; n = count."""
    assert real.labels is not None
    labels = real.labels[count:]
    kept = count + ((labels >= 0) & (labels < index.num_classes // 2)).nonzero()[:count, 0]
    if len(kept) < count:
        raise InputError(f"only {len(kept)} of {len(labels)} images are of the first half of the classes: use a smaller "
                         "--count")
    images, others = read(index, count), real.features[count:2 * count]
    return {"reals": others,
            "missing classes": real.features[kept],
            "blur": spoiled("blur", blurred, images, index, network),
            "repeated": others[:count // TIMES].repeat(TIMES, 1),
            "JPEG": spoiled("JPEG", compressed, images, index, network),
            "noise": spoiled("noise", noisy, images, index, network)}


def read(index: DatasetIndex, count: int) -> Tensor:
    """Images count, ..., 2 count - 1 of the order of `RealSamples`, uint8 [n, C, H, W]."""
    stream, images = BatchStream(index, StreamPlan(0, LANES, BLOCK, BATCH), ReaderOptions(workers=0)), []
    try:
        for start in range(0, 2 * count, BATCH):
            images.append(next(stream)["sample"][max(count - start, 0):max(2 * count - start, 0)].clone())
    finally:
        stream.close()
    return torch.cat(images)


def spoiled(name: str, spoil: Spoil, images: Tensor, index: DatasetIndex, network: FeatureNetwork) -> Tensor:
    """Features of spoiled images, float32 [n, d] on the CPU, from the user's cache if they are there."""
    key = f"{VERSION} {name} {len(images)} {index.fingerprint} {network.sha256} {network.resize}"
    folder = user_folder("judgement")
    path = folder and folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        if path and path.is_file():
            return load_file(path)["features"]
    found = torch.empty(len(images), network.dimensions)
    for start in tqdm(range(0, len(images), BATCH), desc=name, unit=f"{BATCH} img", disable=None):
        found[start:start + BATCH] = network(spoil(images[start:start + BATCH], start)).cpu()
    if path:
        with replacing(path) as temporary:
            save_file({"features": found}, temporary)
    return found


def blurred(images: Tensor, _: int) -> Tensor:
    offsets = torch.arange(-3, 4)
    weights = torch.exp(-offsets**2 / (2 * SIGMA**2))
    kernel = torch.outer(weights, weights) / weights.sum()**2
    planes = F.pad(images.float().flatten(0, 1)[:, None], 4 * [3], mode="reflect")
    return F.conv2d(planes, kernel[None, None]).view(images.shape).round().to(torch.uint8)


def compressed(images: Tensor, _: int) -> Tensor:
    results = []
    for image in images:
        buffer = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(buffer, "JPEG", quality=QUALITY)
        decoded = torch.from_numpy(np.array(Image.open(buffer)))
        results.append(decoded[None] if len(image) == 1 else decoded.permute(2, 0, 1))
    return torch.stack(results)


def noisy(images: Tensor, first: int) -> Tensor:
    numbers = torch.arange(first, first + len(images))
    noise = randomness.normal(0, "judgement.noise", numbers, images.shape[1:])
    return (images + DEVIATION * noise).round().clamp(0, 255).to(torch.uint8)


def judge(scores: dict[str, Row]) -> None:
    """Whether the order holds."""
    for score, value in (("KID", lambda row: row.kernel), ("FD", lambda row: row.frechet)):
        broken = [f"{low} {value(scores[low]):.4g}, {high} {value(scores[high]):.4g}"
                  for low, high in itertools.pairwise(ORDER) if not value(scores[low]) < value(scores[high])]
        print(f"order by {score}: {' < '.join(ORDER)}: " + (f"does not hold ({'; '.join(broken)})" if broken else "holds"))


def compare_with_formula(real: Tensor) -> None:
    """Fréchet distances of disjoint sets of reals, which are nothing but bias."""
    total, moments = len(real), Moments.of(real)
    print(f"\n{'n':<8}{'pairs':>6}{'FD':>10}{'formula':>10}{'FD / formula':>14}")
    for pairs in (1, 2, 4, 8):
        n = total // (2 * pairs)
        values = [frechet_distance(real[start:start + n], real[start + n:start + 2 * n])
                  for start in range(0, 2 * n * pairs, 2 * n)]
        mean, expected = sum(values) / pairs, frechet_bias(moments, (n, n))
        print(f"{n:<8}{pairs:>6}{mean:>10.3f}{expected:>10.3f}{mean / expected:>14.3f}"
              + ("   n <= d: the formula is for larger n" if n <= real.shape[1] else ""), flush=True)


def compare_with_fidelity(reference: Tensor, sets: dict[str, Tensor], scores: dict[str, Row]) -> None:
    """The largest relative deviations of torch-fidelity from ours."""
    try:  # beside some builds of torch, torchvision fails with more than ImportError
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_kid import kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric
    except Exception as error:
        print(f"\ntorch-fidelity cannot be imported here ({error}): no comparison with it")
        return
    differ: dict[str, dict[str, float]] = {}
    real = reference.double()
    for name, features in sets.items():
        row, generated = scores[name], features.double()
        statistics = fid_features_to_statistics(real), fid_features_to_statistics(generated)
        manifold = prc_features_to_metric(generated, real, prc_neighborhood=3, save_cpu_ram=False, verbose=False)
        theirs = {"FD": fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
                  "KID": kid_features_to_metric(real, generated, kid_subsets=1, kid_subset_size=len(real),
                                                verbose=False)["kernel_inception_distance_mean"],
                  "precision": manifold["precision"], "recall": manifold["recall"]}
        ours = {"FD": row.frechet, "KID": row.kernel, "precision": row.manifold.precision, "recall": row.manifold.recall}
        for score, value in theirs.items():
            differ.setdefault(score, {})[name] = abs(float(value) - ours[score]) / max(abs(ours[score]), 1e-12)
    print()
    for score, values in differ.items():
        name = max(values, key=values.__getitem__)
        verdict = "equal" if values[name] <= EQUAL else "DIFFERS"
        print(f"torch-fidelity, {score}: {verdict}, at most {values[name]:.0e} ({name})")


if __name__ == "__main__":
    sys.exit(main())
