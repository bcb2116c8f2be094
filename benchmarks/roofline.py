"""How fast could a training step be at best? The floor of a preset on a GPU, for which no GPU is needed.

    python benchmarks/roofline.py launch/presets/ffhq256.yaml --gpu h200 --batch 32
    python benchmarks/roofline.py launch/presets/ffhq1024.yaml --gpu a100 precision.top_resolutions=9
    python benchmarks/roofline.py launch/presets/cifar10.yaml --classes 10 --rates 200 25 1.0

The phases run on tensors without values and every operation is counted (benchmarks/counting.py). A kernel takes at least the
longer of its FLOPs at the device's rate and its bytes at the bandwidth, and kernels follow one another. Per image of the batch:

    GFLOP       of convolutions and matrix products
    MB          read and written; reference: plain PyTorch operators, fused: the native ones and closed convolutions
    ms          the floor; convolutions: as if everything but convolutions and matrix products were free
    step        a lazy phase counts one in every `interval`

Launches, random access and a cache that keeps small tensors are not part of it.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from counting import CountedPhase, Rates, count_step, empty_index  # noqa: E402

from stylegan_dist.config import load_config  # noqa: E402
from stylegan_dist.config.schema import Config  # noqa: E402
from stylegan_dist.errors import InputError  # noqa: E402
from stylegan_dist.ranks import World  # noqa: E402
from stylegan_dist.training.rules import resolve  # noqa: E402

# What long kernels reach of the data sheet's numbers: matrix units slow down at their power limit, memory is refreshed.
REACHED_FLOPS, REACHED_BANDWIDTH = 0.8, 0.9


@dataclass(frozen=True)
class Gpu:
    """A data sheet: dense TFLOP/s and TB/s. `low` is of bf16 (V100: fp16), `tf32` zero where there is none."""

    low: float
    tf32: float
    fp32: float
    bandwidth: float
    bf16: bool = True


GPUS = {
    "h200": Gpu(989, 494, 67, 4.8),          # NVIDIA H200 SXM data sheet (numbers with sparsity halved)
    "h100": Gpu(989, 494, 67, 3.35),         # NVIDIA H100 SXM data sheet
    "h100-pcie": Gpu(756, 378, 51, 2.0),     # the same, PCIe column
    "a100": Gpu(312, 156, 19.5, 2.039),      # NVIDIA A100 80 GB SXM data sheet
    "a100-40": Gpu(312, 156, 19.5, 1.555),   # the same, 40 GB
    "l40s": Gpu(362, 183, 91.6, 0.864),      # NVIDIA L40S data sheet
    "v100": Gpu(125, 0, 15.7, 0.9, False),   # NVIDIA V100 SXM2 data sheet
}


def rates_of(gpu: Gpu, tf32: bool) -> Rates:
    full = gpu.tf32 if tf32 and gpu.tf32 else gpu.fp32
    return Rates(gpu.low * 1e12 * REACHED_FLOPS, full * 1e12 * REACHED_FLOPS, gpu.bandwidth * 1e12 * REACHED_BANDWIDTH)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--gpu", choices=GPUS, default="h200")
    parser.add_argument("--rates", nargs=3, type=float, metavar=("LOW", "FULL", "BANDWIDTH"),
                        help="of another device, as measured: TFLOP/s in bf16 or fp16 and in fp32, TB/s")
    parser.add_argument("--batch", type=int, help="images of one device (default: run.batch)")
    parser.add_argument("--resolution", type=int, help="of the images (default: the number in the preset's name, or 32)")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=0)
    args = parser.parse_intermixed_args()
    try:
        config = load_config(args.preset, [*args.overrides, *([f"run.batch={args.batch}"] if args.batch else [])])
        if args.batch:
            fit_groups(config)
        index = empty_index(args.resolution or resolution_of(args.preset), args.channels, args.classes)
        resolved = resolve(config, index, World(1, "cuda", GPUS[args.gpu].bf16))
        precision, batch = resolved.config.precision, resolved.config.run.batch
        rates = rates_of(GPUS[args.gpu], precision.tf32)
        if args.rates:
            rates = Rates(*(number * 1e12 for number in args.rates))
        name = "given rates" if args.rates else f"{args.gpu}, {REACHED_FLOPS:.0%} and {REACHED_BANDWIDTH:.0%} of its data sheet"
        print(f"{Path(args.preset).name}, {index.resolution} px, batch {batch}, {precision.dtype} in the top "
              f"{precision.top_resolutions} resolutions; {name}: {rates.low / 1e12:.0f} and {rates.full / 1e12:.0f} TFLOP/s in "
              f"{precision.dtype} and {'tf32' if precision.tf32 else 'fp32'}, {rates.bandwidth / 1e12:.2f} TB/s")
        print("\n".join(table({path: count_step(resolved, index, path) for path in ("reference", "fused")}, batch, rates)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def resolution_of(preset: str) -> int:
    """The number in its name, or 32."""
    digits = re.findall(r"\d+", Path(preset).stem)
    return int(digits[-1]) if digits and int(digits[-1]) >= 32 else 32


def fit_groups(config: Config) -> None:
    """Smaller groups of images where the batch is too small for those of the preset: the costs are the same."""
    group = getattr(config.discriminator, "mbstd_group", None)
    if isinstance(group, int) and isinstance(config.run.batch, int) and config.run.batch % group:
        config.discriminator.mbstd_group = next(n for n in (8, 4, 2, 1) if config.run.batch % n == 0)


def table(ways: dict[str, list[CountedPhase]], batch: int, rates: Rates) -> list[str]:
    """Lines: a phase each, and an average step."""
    lines = [f"{'phase':<11}{'every':>6}{'GFLOP':>9}" + "".join(f"{way + ': kernels':>20}{'MB':>8}{'ms':>8}" for way in ways) +
             f"{'convolutions: ms':>18}"]
    total = [0.0] * (2 + 3 * len(ways))
    phases = list(zip(*ways.values(), strict=True))
    for same in phases:
        first, last = same[0], same[-1]
        numbers = [last.flops() / 1e9 / batch]
        for p in same:
            numbers += [len(p.kernels), p.bytes() / 1e6 / batch, rates.seconds(p.kernels) * 1e3 / batch]
        numbers.append(rates.seconds(k for k in last.kernels if k.kind in ("convolution", "product")) * 1e3 / batch)
        total = [t + n / first.interval for t, n in zip(total, numbers, strict=True)]
        lines.append(_line(first.name, first.interval, numbers))
    return [*lines, _line("step", 1, total)]


def _line(name: str, interval: int, numbers: list[float]) -> str:
    cells = "".join(f"{numbers[i]:>20.0f}{numbers[i + 1]:>8.0f}{numbers[i + 2]:>8.3f}" for i in range(1, len(numbers) - 1, 3))
    return f"{name:<11}{interval:>6}{numbers[0]:>9.1f}{cells}{numbers[-1]:>18.3f}"


if __name__ == "__main__":
    sys.exit(main())
