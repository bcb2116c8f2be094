"""Is the estimate of memory right? Estimated and measured peak of several configurations.

    python benchmarks/memory.py
    python benchmarks/memory.py --resolution 256 run.batch=8 run.batch_gpu=4 run.recompute=32

Measured is the peak of what PyTorch has allocated in a step in which all phases take place: on a GPU
`torch.cuda.max_memory_allocated`, on a CPU the sum over the allocations and releases that torch.profiler
records. Neither contains the libraries themselves. Random images, so no data set is needed.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

from stylegan_dist.config import load_config
from stylegan_dist.data.batches import Batch
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import Kind
from stylegan_dist.machine import supports_bf16
from stylegan_dist.ranks import World
from stylegan_dist.training.memory import Estimate, estimate_memory
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.setup import set_arithmetic
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.step import micro_batches, run_phase

THIN = ("generator.channel_max=64", "discriminator.channel_max=64", "generator.mapping_layers=2")
NO_PATH = "loss.path_length_weight=0"
SGD = ("optim.g.name=SGD", "optim.d.name=SGD", "optim.g.lr=0.001", "optim.d.lr=0.001", "optim.g.momentum=0.9",
       "optim.d.momentum=0.9")
CASES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (32, ("run.batch=32", "run.batch_gpu=32", "discriminator.architecture=orig", "generator.channel_max=128",
          "discriminator.channel_max=128", NO_PATH)),
    (32, ("run.batch=32", "run.batch_gpu=16", *THIN, "loss.r2_gamma=1", *SGD)),
    (32, ("run.batch=4", "run.batch_gpu=4", "generator.channel_max=512", "discriminator.channel_max=512")),
    (64, ("run.batch=16", "run.batch_gpu=8", *THIN)),
    (64, ("run.batch=16", "run.batch_gpu=8", *THIN, "run.recompute=8")),
    (64, ("run.batch=16", "run.batch_gpu=8", *THIN, "run.recompute=8", NO_PATH, "loss.r1_gamma=0")),
    (64, ("run.batch=8", "run.batch_gpu=8", *THIN, "discriminator.architecture=orig", "precision.channels_last=false",
          "loss.r2_gamma=1", "loss.penalty_interval=1", "loss.path_length_interval=1")),
    (256, ("run.batch=4", "run.batch_gpu=4", *THIN, "generator.channel_base=8192")),
    (256, ("run.batch=4", "run.batch_gpu=4", *THIN, "generator.channel_base=8192", "run.recompute=32")),
    (256, ("run.batch=4", "run.batch_gpu=4", *THIN, "generator.channel_base=8192", "run.recompute=32", NO_PATH,
           "loss.r1_gamma=0", *SGD)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--resolution", type=int, help="measure one configuration of this resolution, made of the overrides")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_intermixed_args()
    device = torch.device(args.device)
    cases = CASES if args.resolution is None else ((args.resolution, ()),)
    print(f"{'px':>5}{'estimated MiB':>15}{'measured MiB':>14}{'ratio':>7}{'seconds':>9}  in, with")
    try:
        for resolution, overrides in cases:
            overrides = (*overrides, *args.overrides)
            estimate, seconds, measured = compare(resolution, overrides, device)
            print(f"{resolution:>5}{estimate.peak / 2**20:>15.1f}{measured / 2**20:>14.1f}{estimate.peak / measured:>7.3f}"
                  f"{seconds:>9.2f}  {estimate.worst}, {' '.join(overrides)}", flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(resolution: int, overrides: tuple[str, ...], device: torch.device) -> tuple[Estimate, float, int]:
    """The estimate, the seconds that it took, and the measured peak in bytes."""
    shard = Shard("none.tar", 1, 0, "", "none.npy", "")
    index = DatasetIndex(resolution, 3, "png", None, None, [shard])
    config = load_config(None, list(overrides))
    resolved = resolve(config, index, World(1, device.type, supports_bf16(device.type)))
    set_arithmetic(resolved.config)
    begin = time.perf_counter()
    estimate = estimate_memory(resolved, index, 1, device.type)
    seconds = time.perf_counter() - begin

    images = torch.randint(0, 256, (resolved.config.run.batch, 3, resolution, resolution), dtype=torch.uint8)
    batch = Batch(torch.arange(len(images)), {"sample": images, "label": torch.full((len(images),), -1)})
    if device.type == "cuda":
        state = TrainState(resolved, index, device)
        step(state, batch, index.kind)  # makes the optimizers' state
        torch.cuda.reset_peak_memory_stats(device)
        step(state, batch, index.kind)
        return estimate, seconds, torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as beginning:
        state = TrainState(resolved, index, device)
        step(state, batch, index.kind)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as second_step:
        step(state, batch, index.kind)
    (_, there), (peak, _) = allocated(beginning), allocated(second_step)
    return estimate, seconds, there + peak


def step(state: TrainState, batch: Batch, kind: Kind) -> None:
    """Every phase, once."""
    device = state.objective.device
    parts = micro_batches(batch, state.config.run.batch_gpu, False, device, kind)
    for phase in state.phases:
        run_phase(state, phase, parts)
    state.ema.update(state.generator, 0, len(batch.index))


def allocated(recorded: profile) -> tuple[int, int]:
    """(most, at the end): bytes allocated since the beginning of a recording."""
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most, now


if __name__ == "__main__":
    sys.exit(main())
