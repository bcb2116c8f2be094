"""How fast is each phase of a step, and how much memory does it take, on this machine?

    python benchmarks/step.py launch/presets/ffhq256.yaml
    python benchmarks/step.py launch/presets/cifar10.yaml --resolution 32 --classes 10 run.batch=32
    accelerate launch --config_file launch/accelerate/8gpu.yaml benchmarks/step.py launch/presets/ffhq1024.yaml

Uses random images, so no data set is needed. One row a phase: milliseconds and images per second of one
execution, and its share of an average step, in which a lazy phase counts one in every `interval`. Peak
memory is that of the phase on a GPU; on a CPU it is the largest size of the process so far.

With run.compile=true every execution is timed in turn without and with compiled networks, so that other work on
the machine meets both alike; "gain" is how many times as fast it is with them. With run.cuda_graphs=true phases
are recorded before they are timed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from pathlib import Path

import torch

from stylegan_dist.config import load_config
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.data.stream import Batch
from stylegan_dist.errors import InputError
from stylegan_dist.machine import peak_memory
from stylegan_dist.training.compiled import compile_networks, networks_to_compile, why_not_compiled
from stylegan_dist.training.engine import Engine
from stylegan_dist.training.engine.graphs import WARM_UP
from stylegan_dist.training.loop import set_arithmetic
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.step import micro_batches, run_phase


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--resolution", type=int, help="of the images (default: the number in the preset's name, or 32)")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5, help="timed executions of each phase (default: %(default)s)")
    args = parser.parse_intermixed_args()
    digits = re.findall(r"\d+", Path(args.preset).stem)
    resolution = args.resolution or (int(digits[-1]) if digits and int(digits[-1]) >= 32 else 32)
    try:
        measure(args, resolution)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace, resolution: int) -> None:
    config = load_config(args.preset, args.overrides)
    engine = Engine(config.run.device, config.run.world_size, config.run.threads, reduction=config.run.reduction,
                    graphs=config.run.cuda_graphs)
    shard = Shard("none.tar", 1, 0, "", "none.npy", "")
    classes = [str(i) for i in range(args.classes)] or None
    index = DatasetIndex(resolution, args.channels, "png", classes, [1] * args.classes if classes else None, [shard])
    resolved = resolve(config, index, engine.world_size, engine.device.type, engine.supports_bf16)
    config = resolved.config
    set_arithmetic(config)
    state = TrainState(resolved, index, engine.device, engine)

    count = config.run.batch // engine.world_size
    first = torch.arange(engine.rank * count, (engine.rank + 1) * count)
    images = torch.randint(0, 256, (count, args.channels, resolution, resolution), dtype=torch.uint8)
    labels = first % args.classes if classes else torch.full_like(first, -1)
    parts = micro_batches(Batch(images, labels, first), config.run.batch_gpu, resolved.conditional, engine.device)

    objective = state.objective
    ways = [(objective.synthesis, objective.logits)]
    if not why_not_compiled(config, engine.spreads("g")):
        networks = networks_to_compile(engine.device.type)
        print(compile_networks(state, engine, networks, parts[0]))
        ways.append((objective.synthesis, objective.logits))
        if not engine.no_graphs:  # a recording is for one of them
            del ways[0]

    rows, step = [], [0.0, 0.0]
    warm_up = 1 if engine.no_graphs else WARM_UP + 1
    for phase in state.phases:
        if engine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds: list[list[float]] = [[] for _ in ways]
        for _ in range(args.rounds + warm_up):
            for way, times in zip(ways, seconds, strict=True):
                objective.synthesis, objective.logits = way
                begin = time.perf_counter()
                run_phase(state, phase, parts)
                if engine.device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
        medians = [statistics.median(times[warm_up:]) for times in seconds]
        step = [total + median / phase.interval for total, median in zip(step, medians, strict=False)]
        rows.append((phase.name, phase.interval, medians, peak_memory(engine.device) / 2**30))
    if engine.is_main:
        print(f"{Path(args.preset).name}, {resolution} px, batch {config.run.batch} in parts of {config.run.batch_gpu}, "
              f"{config.precision.dtype}, {engine.describe()}, torch {torch.__version__}, "
              f"{torch.get_num_threads()} CPU threads per process")
        print(f"{'phase':<12}{'every':>6}{'ms':>11}{'img/s':>11}{'of step':>9}{'peak GiB':>10}" +
              (f"{'compiled':>11}{'gain':>7}" if len(ways) == 2 else ""))
        for name, interval, medians, memory in [*rows, ("step", 1, step[:len(ways)], max(row[3] for row in rows))]:
            print(f"{name:<12}{interval:>6}{medians[0] * 1e3:>11.1f}{config.run.batch / medians[0]:>11.1f}"
                  f"{medians[0] / interval / step[0]:>9.0%}{memory:>10.2f}" +
                  (f"{medians[1] * 1e3:>11.1f}{medians[0] / medians[1]:>7.2f}" if len(ways) == 2 else ""))
    engine.close()


if __name__ == "__main__":
    sys.exit(main())
