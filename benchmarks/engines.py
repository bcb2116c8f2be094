"""What does each engine cost: time of a step, memory of a rank, bytes sent? And how far would it scale?

    python benchmarks/engines.py launch/presets/cifar10.yaml --resolution 32 run.batch=32 discriminator.mbstd_group=4
    python benchmarks/engines.py launch/presets/ffhq256.yaml --resolution 256 --engines flat,ddp --worlds 2,4,8
    python benchmarks/engines.py --model --parameters 30e6 24e6 --milliseconds 120

Every engine and world is a launch of its own on this machine, on random images. Columns:

    step ms   an average step; a lazy phase counts one in every `interval`
    alone     the same work at the same time in the same number of processes that do not talk to each other
    talk      step - alone
    model     what the communication model says for talk, from the bandwidth and latency measured in the same launch
    MB sent   by a rank per step: counted on the loopback interface (CPU only), and what the algorithm needs
    state     bytes that a rank holds between steps: parameters, optimizer, average, MiB

--model prints, without running anything, the time of a step on 8 to 512 GPUs: compute time as given, communication
from bytes, latency and bandwidth of NVLink inside nodes of 8 and of one 400 Gb/s adapter a GPU between them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENGINES = ("flat", "ddp", "zero1", "zero2", "zero3", "zero2-offload")
LAUNCH = {"flat": "cpu.yaml", "ddp": "cpu.yaml"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="launch/presets/cifar10.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s")
    parser.add_argument("--worlds", default="1,2,4", help="numbers of processes (default: %(default)s)")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7, help="timed executions of each phase (default: %(default)s)")
    parser.add_argument("--model", action="store_true", help="print the scaling model and stop")
    parser.add_argument("--parameters", type=float, nargs=2, metavar=("G", "D"), default=(30.0e6, 28.9e6))
    parser.add_argument("--milliseconds", type=float, default=100.0, help="compute time of a step on one GPU, for --model")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.model:
        print_model(args.parameters, args.milliseconds)
    elif args.child:
        measure(args)
    else:
        compare(args)
    return 0


def compare(args: argparse.Namespace) -> None:
    """One launch for every engine and world; one row for each."""
    print(f"{'engine':<14}{'ranks':>6}{'step ms':>9}{'alone':>8}{'talk':>8}{'model':>8}{'MB sent':>9}{'needed':>8}"
          f"{'state':>8}")
    for world in map(int, args.worlds.split(",")):
        for engine in args.engines.split(","):
            if world == 1 and engine == "ddp":
                continue
            config = ROOT / "launch/accelerate" / LAUNCH.get(engine, f"{engine}.yaml")
            if engine == "flat" and world == 1:
                config = config.with_name("1gpu.yaml")
            command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes",
                       str(world), __file__, args.preset, *args.overrides, "--child", engine, "--resolution",
                       str(args.resolution), "--rounds", str(args.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1200,
                                  env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if not lines:
                said = [line for line in (done.stderr or done.stdout).splitlines() if "Error" in line] or ["nothing was said"]
                print(f"{engine:<14}{world:>6}  failed: {said[0]}")
                continue
            r = json.loads(lines[-1])
            sent = f"{r['sent'] / 1e6:>9.2f}" if r["sent"] is not None else f"{'-':>9}"
            print(f"{engine:<14}{world:>6}{r['step'] * 1e3:>9.1f}{r['alone'] * 1e3:>8.1f}{(r['step'] - r['alone']) * 1e3:>8.1f}"
                  f"{r['model'] * 1e3:>8.1f}{sent}{r['needed'] / 1e6:>8.2f}{r['state'] / 2**20:>8.1f}",
                  flush=True)
    print(r["about"])


def measure(args: argparse.Namespace) -> None:
    """In each process of one launch; rank 0 prints the result as JSON."""
    import torch

    from stylegan_dist.config import load_config
    from stylegan_dist.data.batches import Batch
    from stylegan_dist.data.index import DatasetIndex, Shard
    from stylegan_dist.engine import Engine
    from stylegan_dist.training.rules import resolve
    from stylegan_dist.training.setup import set_arithmetic
    from stylegan_dist.training.state import TrainState
    from stylegan_dist.training.step import micro_batches, run_phase

    overrides = [*args.overrides, f"run.reduction={'buckets' if args.child == 'ddp' else 'flat'}"]
    config = load_config(args.preset, overrides)
    run = config.run
    engine = Engine(run)
    index = DatasetIndex(args.resolution, 3, "png", None, None, [Shard("none.tar", 1, 0, "", "none.npy", "")])
    resolved = resolve(config, index, engine.world)
    config = resolved.config
    set_arithmetic(config)
    state = TrainState(resolved, index, engine.device, engine)
    count = config.run.batch // engine.world_size
    first = torch.arange(engine.rank * count, (engine.rank + 1) * count)
    images = torch.randint(0, 256, (count, 3, args.resolution, args.resolution), dtype=torch.uint8)
    batch = Batch(first, {"sample": images, "label": torch.full_like(first, -1)})
    parts = micro_batches(batch, config.run.batch_gpu, False, engine.device, index.kind)
    meeting = torch.zeros(1, device=engine.device)

    def timed(state: TrainState, number: int) -> tuple[float, int]:
        """Seconds, and bytes on the loopback interface, of one execution of a phase."""
        engine.sum(meeting).tolist()
        before, begin = loopback(), time.perf_counter()
        run_phase(state, state.phases[number], parts)
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        engine.sum(meeting).tolist()
        return seconds, loopback() - before

    lone = TrainState(resolved, index, engine.device)
    seconds = alone = sent = 0.0
    for number, phase in enumerate(state.phases):
        rounds = []
        for _ in range(args.rounds + 2):  # one after the other, so that both meet the same moods of the machine
            rounds.append((*timed(state, number), timed(lone, number)[0]))
        together, bytes_, apart = (statistics.median(column) for column in zip(*rounds[2:], strict=True))
        seconds += together / phase.interval
        alone += apart / phase.interval
        sent += bytes_ / phase.interval
    held = [value for learner in state.learners.values() for _, value, _ in learner.local()]
    if not engine.shards("g"):
        held = [p for network in state.networks.values() for p in network.parameters()] + list(state.ema.network.parameters())
    else:
        held += list(state.discriminator.parameters()) + held[:len(list(state.generator.parameters()))]  # D; average
    bytes_held = sum(value.numel() * 4 for value in held)
    for optimizer in state.optimizers.values():
        for values, content in optimizer.state.items():
            moments = [v for v in content.values() if torch.is_tensor(v) and v.ndim]
            bytes_held += sum(v.numel() * 4 for v in moments)
            bytes_held += values.numel() * 4 if args.child.startswith("zero") else 0  # its own copy of the values

    latency, bandwidth = link(engine, torch)
    sizes = {name: sum(shape.numel() for shape in learner.shapes.values()) * 4 for name, learner in state.learners.items()}
    needed = sum(traffic(sizes[p.network], engine.world_size, args.child, p.network) / p.interval for p in state.phases)
    talk = sum(talk_time(sizes[p.network], engine.world_size, args.child, p.network, latency, bandwidth) / p.interval
               for p in state.phases)
    if engine.is_main:
        where = f"{os.cpu_count()} CPU cores" if engine.device.type == "cpu" else torch.cuda.get_device_name()
        about = (f"{Path(args.preset).name}, {args.resolution} px, batch {config.run.batch}, {config.precision.dtype}, G and D "
                 f"{sizes['g'] / 4e6:.1f} and {sizes['d'] / 4e6:.1f} M parameters, torch {torch.__version__}, {where}")
        print(json.dumps({
            "step": seconds, "alone": alone, "model": talk, "needed": needed, "state": bytes_held,
            "sent": sent / engine.world_size if engine.device.type == "cpu" else None, "about": about,
        }))
    engine.close()


def loopback() -> int:
    """Bytes that have been sent on the loopback interface."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def link(engine, torch) -> tuple[float, float]:
    """Latency of a message, seconds, and bandwidth of a rank, bytes / s: fitted to a small and a large all-reduce."""
    world = engine.world_size
    if world == 1:
        return 0.0, float("inf")
    times = []
    for numbers in (1, 4 << 20):
        values, measured = torch.zeros(numbers, device=engine.device), []
        for _ in range(12):
            engine.sum(torch.zeros(1, device=engine.device)).tolist()
            begin = time.perf_counter()
            engine.sum(values)[:1].tolist()
            measured.append(time.perf_counter() - begin)
        times.append(statistics.median(measured[2:]))
    latency = times[0] / (2 * (world - 1))
    return latency, 2 * (world - 1) / world * (16 << 20) / max(times[1] - times[0], 1e-9)


def traffic(size: float, world: int, engine: str, network: str) -> float:
    """Bytes that a rank sends for one optimizer step of a network of `size` bytes, at least.

    An all-reduce is a reduce-scatter and an all-gather of (N - 1) / N of the buffer each. ZeRO-1 and ZeRO-2 do the
    same with the gradients and the new parameters. ZeRO-3 gathers the parameters for forward and backward instead; that
    the phases of the other network fetch them, too, is not counted.
    """
    share = (world - 1) / world * size
    gathers = 2 if engine == "zero3" and network == "g" else 1
    return share * (1 + gathers)


def talk_time(size: float, world: int, engine: str, network: str, latency: float, bandwidth: float) -> float:
    """Seconds of communication of one optimizer step, nothing of it hidden behind computation."""
    return 2 * (world - 1) * latency + traffic(size, world, engine, network) / bandwidth


def print_model(parameters: tuple[float, float], milliseconds: float) -> None:
    """A table for clusters: weak scaling, every GPU computes the same."""
    per_node, nvlink, adapter = 8, 350e9, 45e9  # bytes / s that a GPU reaches in a collective, of 450 and 50 nominal
    near, far = 3e-6, 10e-6                     # seconds per hop
    print(f"G {parameters[0] / 1e6:.0f} M, D {parameters[1] / 1e6:.0f} M parameters, {milliseconds:g} ms of computing a step "
          "(g_main, d_main, a quarter g_path, a sixteenth d_penalty)")
    print(f"{'GPUs':>6}{'sum G ms':>10}{'sum D ms':>10}{'step ms':>9}{'efficiency':>12}{'overlapped':>12}")
    for gpus in (1, 8, 16, 32, 64, 128, 256, 512):
        local, nodes = min(gpus, per_node), max(1, gpus // per_node)
        times = []
        for count in parameters:
            size = 4 * count
            inside = 2 * (local - 1) * near + 2 * (local - 1) / local * size / nvlink
            # Between nodes every GPU sums its eighth with its like on the other nodes, over its own adapter.
            between = 2 * (nodes - 1) * far + 2 * (nodes - 1) / nodes * size / local / adapter
            times.append(inside + between if gpus > 1 else 0.0)
        talk = (times[0] * (1 + 1 / 4) + times[1] * (1 + 1 / 16)) * 1e3
        # Buckets travel while the rest of the backward pass, about half of the computing, still runs.
        hidden = max(0.0, talk - milliseconds / 2)
        print(f"{gpus:>6}{times[0] * 1e3:>10.2f}{times[1] * 1e3:>10.2f}{milliseconds + talk:>9.1f}"
              f"{milliseconds / (milliseconds + talk):>12.1%}{milliseconds / (milliseconds + hidden):>12.1%}")


if __name__ == "__main__":
    sys.exit(main())
