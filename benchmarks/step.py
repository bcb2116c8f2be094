"""How fast is each phase of a step, how far from the floor, and how much memory does it take, on this machine?

    python benchmarks/step.py launch/presets/ffhq256.yaml
    python benchmarks/step.py launch/presets/cifar10.yaml --classes 10 run.batch=32
    python benchmarks/step.py launch/presets/cifar10.yaml --classes 10 --ways reference,compile,fused,all --rounds 7
    python benchmarks/step.py launch/presets/auto.yaml --pipes none,bgc,bgcfnc augment.p=0.5
    accelerate launch --config_file launch/accelerate/8gpu.yaml benchmarks/step.py launch/presets/ffhq1024.yaml

Uses random images, so no data set is needed. All ways take turns, so that other work on the machine meets all alike:

    reference   operators in plain PyTorch
    compile     the same, with compiled networks (docs/performance.md)
    closed      operators in plain PyTorch, but closed convolutions (docs/ops.md)
    fused       native operators and closed convolutions
    graphs      the same, with phases recorded as CUDA graphs
    all         native operators, compiled networks, recorded phases

With --pipes the columns are pipes of augmentation, and the last row says which share of a step each takes.

One row a phase, and one for the moving average: milliseconds of an execution (median), how many times the floor that is, and
on a GPU the peak memory. In "step" a lazy phase counts one in every `interval`. The floor is that of benchmarks/roofline.py
for native operators, at the rates of this GPU, or elsewhere at those that a large convolution and a large copy reach here. A
CPU can be below it: Winograd convolutions need fewer multiplications than are counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch  # noqa: E402
from counting import CountedPhase, Rates, count_step, empty_index  # noqa: E402
from roofline import GPUS, fit_groups, rates_of, resolution_of  # noqa: E402

from stylegan_dist.config import load_config  # noqa: E402
from stylegan_dist.config.schema import Config  # noqa: E402
from stylegan_dist.data.batches import Batch  # noqa: E402
from stylegan_dist.data.index import DatasetIndex  # noqa: E402
from stylegan_dist.engine import Engine  # noqa: E402
from stylegan_dist.engine.graphs import WARM_UP, CudaRecorder, GraphLearner  # noqa: E402
from stylegan_dist.errors import InputError  # noqa: E402
from stylegan_dist.machine import peak_memory  # noqa: E402
from stylegan_dist.ops import native  # noqa: E402
from stylegan_dist.training.compiled import compile_networks, networks_to_compile  # noqa: E402
from stylegan_dist.training.rules import Resolved, resolve  # noqa: E402
from stylegan_dist.training.setup import set_arithmetic  # noqa: E402
from stylegan_dist.training.state import TrainState  # noqa: E402
from stylegan_dist.training.step import micro_batches, run_phase  # noqa: E402

WAYS = {"reference": ("reference", ""), "compile": ("reference", "compile"), "closed": ("closed", ""),
        "fused": ("fused", ""), "graphs": ("fused", "graphs"),
        "all": ("fused", "compile graphs")}  # operators, and what else is on


@dataclass
class Way:
    """A state of its own, and what was measured of it."""

    name: str                                                        # of WAYS, or a pipe
    operators: str
    state: TrainState
    recorded: bool
    own: int                                                         # bytes on the GPU before the first phase
    seconds: dict[str, list[float]] = field(default_factory=dict)    # phase -> of each execution
    peaks: dict[str, int] = field(default_factory=dict)              # phase -> bytes, with `own`

    def medians(self) -> dict[str, float]:
        skip = WARM_UP + 1 if self.recorded else 1
        return {name: statistics.median(times[skip:]) for name, times in self.seconds.items()}


class Recording:
    """Makes networks learn as an `Engine` does that records phases."""

    def __init__(self, engine: Engine):
        self._engine, self._recorder = engine, CudaRecorder(engine.device)

    def learner(self, name: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> GraphLearner:
        return GraphLearner(network, optimizer, self._engine, self._recorder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--resolution", type=int, help="of the images (default: the number in the preset's name, or 32)")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=0)
    parser.add_argument("--ways", help="comma-separated (default: all on a GPU, reference and fused on a CPU)")
    parser.add_argument("--pipes", help="comma-separated pipes of augmentation to compare, without multipliers: none,bgc")
    parser.add_argument("--rounds", type=int, default=5, help="timed executions of each phase (default: %(default)s)")
    args = parser.parse_intermixed_args()
    try:
        measure(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> None:
    config = load_config(args.preset, args.overrides)
    fit_groups(config)
    engine = Engine(replace(config.run, cuda_graphs=False))
    index = empty_index(args.resolution or resolution_of(args.preset), args.channels, args.classes)
    resolved = resolve(config, index, engine.world)
    config = resolved.config
    set_arithmetic(config)

    count = config.run.batch // engine.world_size
    first = torch.arange(engine.rank * count, (engine.rank + 1) * count)
    images = torch.randint(0, 256, (count, args.channels, index.resolution, index.resolution), dtype=torch.uint8)
    labels = first % args.classes if args.classes else torch.full_like(first, -1)
    parts = micro_batches(Batch(first, {"sample": images, "label": labels}), config.run.batch_gpu, resolved.conditional,
                          engine.device, index.kind)

    ways, names = [], names_of(args.ways, engine)
    settings = [(name, name, resolved) for name in names]
    if args.pipes:
        pipes = args.pipes.split(",")
        settings = [(pipe, names[-1], resolve(replace(config, augment=replace(config.augment, pipe=pipe)), index, engine.world))
                    for pipe in pipes]
    for title, name, wanted in settings:
        with native.using(WAYS[name][0]):
            ways.append(way_of(title, name, wanted, index, engine, parts))
    for phase in (*ways[0].state.phases, None):
        for _ in range(args.rounds + (WARM_UP + 1 if any(way.recorded for way in ways) else 1)):
            for way in ways:
                with native.using(way.operators):
                    execute(way, phase.name if phase else "average", parts, count, engine.device)
    if engine.is_main:
        rates, named = rates_here(engine.device, config.precision.tf32)
        floor = {p.name: p for p in count_step(resolved, index, "fused" if native.native().devices else "reference")}
        print(f"{Path(args.preset).name}, {index.resolution} px, batch {config.run.batch} in parts of {config.run.batch_gpu}, "
              f"{config.precision.dtype}, {engine.describe()}, torch {torch.__version__}, "
              f"{torch.get_num_threads()} CPU threads per process")
        print(f"operators: {native.path(engine.device.type, 'fused')}")
        print(f"rates: {named}; {rates.low / 1e12:.3g} and {rates.full / 1e12:.3g} TFLOP/s, {rates.bandwidth / 1e12:.3g} TB/s")
        print("\n".join(table(ways, floor, rates, config, engine, bool(args.pipes))))
        if engine.device.type == "cpu":
            print(f"largest size of the process: {peak_memory(engine.device) / 2**30:.2f} GiB")
    engine.close()


def names_of(wanted: str | None, engine: Engine) -> list[str]:
    on_gpu = engine.device.type == "cuda"
    names = wanted.split(",") if wanted else list(WAYS) if on_gpu else ["reference", "fused"]
    for name in names:
        if name not in WAYS:
            raise InputError(f"--ways {name}: use some of {', '.join(WAYS)}")
        if not native.native().devices and WAYS[name][0] == "fused":
            raise InputError(f"--ways {name}: there are no native operators ({native.native().reason}); use --ways reference")
    return names


def way_of(title: str, name: str, resolved: Resolved, index: DatasetIndex, engine: Engine, parts: list) -> Way:
    """Build its state, and compile its networks. Where there is no GPU nothing is recorded."""
    on_gpu = engine.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    recorded = "graphs" in WAYS[name][1] and on_gpu and not engine.choice.zero
    maker: Any = Recording(engine) if recorded else engine
    state = TrainState(resolved, index, engine.device, maker)
    if "compile" in WAYS[name][1]:
        said = compile_networks(state, engine, networks_to_compile(engine.device.type), parts[0])
        if engine.is_main:
            print(f"{name}: {said}")
    return Way(title, WAYS[name][0], state, recorded, (torch.cuda.memory_allocated() if on_gpu else 0) - before)


def execute(way: Way, phase_name: str, parts: list, count: int, device: torch.device) -> None:
    """One phase, or the moving average, on the clock."""
    state = way.state
    phase = next((p for p in state.phases if p.name == phase_name), None)
    on_gpu, before = device.type == "cuda", 0
    if on_gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    if phase is None:
        state.ema.update(state.generator, 0, count)
    elif notice := run_phase(state, phase, parts).notice:
        print(f"{way.name}: {notice}")
    if on_gpu:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before + way.own
        way.peaks[phase_name] = max(peak, way.peaks.get(phase_name, 0))
    way.seconds.setdefault(phase_name, []).append(time.perf_counter() - begin)


def rates_here(device: torch.device, tf32: bool) -> tuple[Rates, str]:
    """What this device reaches, and where the numbers are from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower().replace("-", " ").replace("80gb", "").split()
        known = [key for key in GPUS if key.replace("-pcie", " pcie").replace("-40", " 40gb").split()[0] in name]
        known = [key for key in known if ("pcie" in name) == ("pcie" in key)] or known
        if known:
            return rates_of(GPUS[known[0]], tf32), f"{known[0]}, reached share of its data sheet"

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(7):
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return min(times)

    count, channels, size = (32, 1024, 64) if device.type == "cuda" else (4, 512, 32)
    flops = []
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = (torch.randn(n, channels, k, k, device=device).to(dtype, memory_format=torch.channels_last)
                     for n, k in ((count, size), (channels, 3)))
        work = 2 * count * (channels * size) ** 2 * 9
        flops.append(work / best(lambda x=x, weight=weight: torch.nn.functional.conv2d(x, weight, padding=1)))
    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    return Rates(*flops, 2 * source.nbytes / best(lambda: target.copy_(source))), "as measured here"


def table(ways: list[Way], floor: dict[str, CountedPhase], rates: Rates, config: Config, engine: Engine,
          pipes: bool) -> list[str]:
    """Lines: a phase each, an average step, images per second, and the gain over the first way or what a pipe takes."""
    on_gpu = engine.device.type == "cuda"
    share = 1 / engine.world_size
    medians = [way.medians() for way in ways]
    rows = [(name, phase.interval, rates.seconds(phase.kernels) * (share if name != "average" else 1),
             [m[name] for m in medians], [way.peaks.get(name, 0) for way in ways]) for name, phase in floor.items()]
    lowest = sum(row[2] / row[1] for row in rows)
    totals = [sum(row[3][i] / row[1] for row in rows) for i in range(len(ways))]
    rows.append(("step", 1, lowest, totals, [max(way.peaks.values(), default=0) for way in ways]))
    lines = [f"{'phase':<11}{'every':>6}{'floor ms':>10}" + "".join(
        f"{way.name + ': ms':>15}{'x floor':>9}" + (f"{'GiB':>7}" if on_gpu else "") for way in ways)]
    for name, interval, least, seconds, peaks in rows:
        lines.append(f"{name:<11}{interval:>6}{least * 1e3:>10.2f}" + "".join(
            f"{s * 1e3:>15.2f}{s / least:>9.2f}" + (f"{peak / 2**30:>7.2f}" if on_gpu else "")
            for s, peak in zip(seconds, peaks, strict=True)))
    blank = " " * (16 if on_gpu else 9)
    batch = config.run.batch
    lines.append(f"{'img/s':<17}{batch / lowest:>10.1f}" + "".join(f"{batch / s:>15.1f}{blank}" for s in totals))
    lines.append(f"{'ms/img':<17}{lowest / batch * 1e3:>10.3f}" + "".join(f"{s / batch * 1e3:>15.3f}{blank}" for s in totals))
    if pipes:
        lines.append(f"{'augmentation':<27}" + "".join(f"{1 - totals[0] / s:>15.0%}{blank}" for s in totals))
    else:
        lines.append(f"{'times as fast':<27}" + "".join(f"{totals[0] / s:>15.2f}{blank}" for s in totals))
    return [line.rstrip() for line in lines]


if __name__ == "__main__":
    sys.exit(main())
