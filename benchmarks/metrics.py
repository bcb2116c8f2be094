"""What do scores cost? Seconds and memory of each, next to plain NumPy and SciPy in the same run.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --samples 4000 --width 2048 --rounds 1
    python benchmarks/metrics.py --device cuda --samples 50000 --ours

One row a score of `--samples` real and as many generated features:

    s           processor seconds of ours, on one thread (on a GPU: seconds of the clock), the least of the rounds
    MB          that it takes at most, beyond the features
    plain s     the same of the plain way: numpy.cov, scipy.linalg.sqrtm, all products of all pairs at once
    plain MB
    x           plain s / s
    differ      largest relative deviation of the two values
    s at 50k    scaled from here to 50,000 samples: with n (moments), n^2 (kernel, manifold), not at all (fréchet)
    plain GB    that the plain way would take there

Each measurement has a process of its own, so that memory is that of one way alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

GOAL = 50_000
ORDERS = {"moments": 1, "frechet": 0, "few": 0, "kernel": 2, "manifold": 2, "inception": 1}  # seconds grow with n to this power
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--width", type=int, default=2048, help="numbers of a feature vector")
    parser.add_argument("--device", default="cpu", help="of ours")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scores", default=",".join(ORDERS))
    parser.add_argument("--ours", action="store_true", help="leave the plain way out")
    args = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy is imported there
        os.environ[name] = "1"
    print(f"{args.samples} real and generated features of {args.width} numbers in float32; {args.device}, one thread of "
          f"{platform.machine()}")
    print(f"{'score':<10}{'s':>9}{'MB':>8}{'plain s':>9}{'plain MB':>10}{'x':>7}{'differ':>9}{'s at 50k':>10}{'plain GB':>10}")
    for name in args.scores.split(","):
        order = ORDERS[name]
        found, seconds, megabytes = measured(name, "ours", args)
        row = f"{name:<10}{seconds:>9.2f}{megabytes:>8.0f}"
        scaled = seconds * (GOAL / args.samples) ** order
        if args.ours:
            print(f"{row}{'':>9}{'':>10}{'':>7}{'':>9}{scaled:>10.0f}", flush=True)
            continue
        theirs, plain_seconds, plain_megabytes = measured(name, "plain", args)
        differ = max(abs(a - b) / abs(b) for a, b in zip(found, theirs, strict=True))
        gigabytes = plain_megabytes / 1e3 * (GOAL / args.samples) ** order
        print(f"{row}{plain_seconds:>9.2f}{plain_megabytes:>10.0f}{plain_seconds / seconds:>7.2f}{differ:>9.0e}{scaled:>10.0f}"
              f"{gigabytes:>10.1f}", flush=True)


def measured(name: str, way: str, args: argparse.Namespace) -> tuple[list[float], float, float]:
    """Values, seconds and megabytes, from a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (name, way, args.samples, args.width, args.device, args.rounds))


def measure(name: str, way: str, samples: int, width: int, device: str, rounds: int) -> tuple[list[float], float, float]:
    import torch

    torch.set_num_threads(1)
    device = "cpu" if way == "plain" else device
    random = torch.Generator().manual_seed(0)
    count = width // 4 if name == "few" else samples
    spectrum = torch.arange(1, width + 1) ** -0.5
    real, generated = (torch.randn(count, width, generator=random) * spectrum * scale + 0.4 for scale in (1, 1.05))
    real, generated = real.to(device), generated.to(device)
    prepare, score = (ours if way == "ours" else plain)(name)
    data: Any = prepare(real, generated)
    clock = time.process_time if device == "cpu" else time.perf_counter
    best, before = float("inf"), peak(device)
    values: list[float] = []
    for _ in range(rounds):
        start = clock()
        values = score(*data)  # numbers of Python, so that a GPU has been waited for
        best = min(best, clock() - start)
    return values, best, max(0.0, (peak(device) - before) / 1e6)


def peak(device: str) -> int:
    """Bytes; on a CPU the largest size of the process so far, which preparing has hardly raised above that of the features."""
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(name: str) -> tuple[Callable, Callable]:
    """What is made before the clock runs, and the score."""
    from dataclasses import astuple

    from stylegan_dist import metrics

    def moments(real: Any, _: Any) -> list[float]:
        found = metrics.Moments.of(real)
        return [float(found.mean.sum()), float(found.covariance.square().sum())]

    return {
        "moments": (lambda *sets: sets, moments),
        "frechet": (lambda *sets: [metrics.Moments.of(x) for x in sets], lambda a, b: [metrics.frechet_distance(a, b)]),
        "few": (lambda *sets: sets, lambda a, b: [metrics.frechet_distance(a, b)]),
        "kernel": (lambda *sets: sets, lambda a, b: [metrics.kernel_distance(a, b).value]),
        "manifold": (lambda *sets: sets,
                     lambda a, b: list(astuple(metrics.manifold_scores(a, b, NEIGHBOURS, DENSITY_NEIGHBOURS)))),
        "inception": (lambda *sets: sets, lambda a, b: [metrics.inception_score(a).value]),
    }[name]


def plain(name: str) -> tuple[Callable, Callable]:
    import numpy as np
    import scipy.linalg
    import scipy.special

    def prepare(*sets: Any) -> list[Any]:
        return [x.double().numpy() for x in sets]

    def statistics(*sets: Any) -> list[Any]:
        return [(x.mean(0), np.cov(x, rowvar=False)) for x in prepare(*sets)]

    def moments(real: Any, _: Any) -> list[float]:
        return [float(real.mean(0).sum()), float(np.square(np.cov(real, rowvar=False)).sum())]

    def frechet(a: Any, b: Any) -> list[float]:
        root = scipy.linalg.sqrtm(a[1] @ b[1])
        return [float(np.square(a[0] - b[0]).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root).real)]

    def few(a: Any, b: Any) -> list[float]:
        x, y = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
        root = np.sqrt(np.linalg.eigvals(x[1] @ y[1]).astype(complex)).real.sum()  # sqrtm has no root of what is singular
        return [float(np.square(x[0] - y[0]).sum() + np.trace(x[1]) + np.trace(y[1]) - 2 * root)]

    def kernel(a: Any, b: Any) -> list[float]:
        def cube(x: Any, y: Any) -> Any:
            return (x @ y.T / x.shape[1] + 1) ** 3

        own, other, m, n = cube(a, a), cube(b, b), len(a), len(b)
        return [float((own.sum() - np.trace(own)) / (m * (m - 1)) + (other.sum() - np.trace(other)) / (n * (n - 1))
                      - 2 * cube(a, b).mean())]

    def distances(x: Any, y: Any) -> Any:
        return np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T

    def manifold(a: Any, b: Any) -> list[float]:
        own, other, across = distances(a, a), distances(b, b), distances(a, b)
        np.fill_diagonal(own, np.inf)
        np.fill_diagonal(other, np.inf)
        radii, wide = (np.partition(own, k - 1, 1)[:, k - 1] for k in (NEIGHBOURS, DENSITY_NEIGHBOURS))
        inside = across <= wide[:, None]
        recalled = across <= np.partition(other, NEIGHBOURS - 1, 1)[:, NEIGHBOURS - 1]
        return [float((across <= radii[:, None]).any(0).mean()), float(recalled.any(1).mean()),
                float(inside.sum() / (DENSITY_NEIGHBOURS * len(b))), float(inside.any(1).mean())]

    def inception(a: Any, _: Any) -> list[float]:
        scores = []
        for part in np.array_split(a, 10):
            p = scipy.special.softmax(part, 1)
            scores.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
        return [float(np.mean(scores))]

    return {"moments": (prepare, moments), "frechet": (statistics, frechet), "few": (prepare, few), "kernel": (prepare, kernel),
            "manifold": (prepare, manifold), "inception": (prepare, inception)}[name]


if __name__ == "__main__":
    main()
