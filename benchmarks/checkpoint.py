"""For how long does a checkpoint stop training, written in the background, and written at once?

    python benchmarks/checkpoint.py launch/presets/ffhq256.yaml --folder /path/on/the/disk
    python benchmarks/checkpoint.py launch/presets/cifar10.yaml --worlds 1
    accelerate launch --config_file launch/accelerate/8gpu.yaml benchmarks/checkpoint.py launch/presets/ffhq1024.yaml --here

The state is that of the preset after a step. The two ways take turns, in one process per rank; the slowest rank counts.
Columns:

    MB        of the state
    at once   seconds of a save for which training waits
    stall     seconds for which it waits when the rest is done in the background (median), and their share of `at once`
    agree     those of the stall in which the ranks compare their networks
    first     the stall of the first save of a process, which also gets the memory
    behind    seconds that the background takes then, with nothing else to do
    training  how fast a loop of small matrix products (Python and PyTorch) is meanwhile, compared with alone
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
COLUMNS = ("ranks", "MB", "at once", "stall", "share", "agree", "first", "behind", "training")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="launch/presets/ffhq256.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--worlds", default="1,2", help="numbers of processes to start here (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help="measure in this launch, and start nothing")
    parser.add_argument("--folder", help="on the disk to measure (default: the temporary folder)")
    parser.add_argument("--rounds", type=int, default=5, help="saves in each way (default: %(default)s)")
    args = parser.parse_intermixed_args()
    if args.here:
        measure(args)
        return 0
    print("".join(f"{name:>10}" for name in COLUMNS), flush=True)
    for world in map(int, args.worlds.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            config = ROOT / "launch/accelerate" / ("1gpu.yaml" if world == 1 else "cpu.yaml")
            command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes",
                       str(world), __file__, args.preset, *args.overrides, "--here", "--folder", folder, "--rounds",
                       str(args.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1800,
                                  env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})
            rows = [line for line in done.stdout.splitlines() if line.startswith("    ")]
            if done.returncode or not rows:
                print(done.stderr[-2000:], file=sys.stderr)
                return 1
            print(rows[-1], flush=True)
    return 0


def measure(args: argparse.Namespace) -> None:
    """In each process of one launch; rank 0 prints the row."""
    import torch
    from counting import empty_index
    from roofline import resolution_of

    from stylegan_dist.config import load_config
    from stylegan_dist.engine import Engine
    from stylegan_dist.training.rules import resolve
    from stylegan_dist.training.saver import Saver
    from stylegan_dist.training.state import TrainState

    config = load_config(args.preset, args.overrides)
    engine, index = Engine(config.run), empty_index(resolution_of(args.preset))
    state = TrainState(resolve(config, index, engine.world), index, engine.device, engine)
    for name, network in state.networks.items():
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)  # the same on all ranks
        state.optimizers[name].step()
    tensors = state.tensors()
    size = sum(value.shape.numel() * value.dtype.itemsize for file in tensors.values() for value in file.values())
    folder = Path(engine.broadcast(args.folder or tempfile.mkdtemp()))
    config.checkpoint.keep = 1
    saver = Saver(folder, engine, config)
    nimg = 0
    a = torch.ones(64, 64)

    def agree() -> None:
        if engine.world_size > 1:
            assert engine.agree(state.checksums())

    def timed(function) -> float:
        """Seconds on the slowest rank."""
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        engine.gather(None)
        begin = time.perf_counter()
        function()
        return max(engine.gather(time.perf_counter() - begin))

    def at_once() -> None:
        agree()
        saver.begin(nimg, state.tensors(), state.facts() | {"nimg": nimg})
        saver.wait()

    def begin() -> None:
        agree()
        saver.begin(nimg, state.tensors(), state.facts() | {"nimg": nimg})

    def work(seconds: float) -> float:
        """Turns a second of a loop that stands for training."""
        turns, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            a.mm(a).sum().item()
            turns += 1
        return turns / seconds

    def check(outcome) -> None:
        assert outcome is not None
        assert not outcome.failure
        assert not outcome.diverged

    slow, stalls, agreed, behind, beside = [], [], [], [], []
    for _ in range(args.rounds + 1):
        nimg += 1
        slow.append(timed(at_once))
        agreed.append(timed(agree))
        nimg += 1
        stalls.append(timed(begin))
        behind.append(timed(lambda: check(saver.wait())))
        alone = work(1.0)
        nimg += 1
        begin()
        beside.append(work(min(1.0, 0.8 * behind[-1])) / alone)
        check(saver.wait())
    middle = {name: statistics.median(values[1:]) for name, values in
              (("slow", slow), ("stall", stalls), ("agree", agreed), ("behind", behind), ("beside", beside))}
    if engine.is_main:
        share, row = middle["stall"] / middle["slow"], (middle["stall"], middle["agree"], stalls[0], middle["behind"])
        print(f"{engine.world_size:>10}{size / 1e6:>10.0f}{middle['slow']:>10.2f}{row[0]:>10.3f}{share:>10.1%}{row[1]:>10.3f}"
              f"{row[2]:>10.3f}{row[3]:>10.2f}{middle['beside']:>10.0%}", flush=True)
    engine.close()


if __name__ == "__main__":
    sys.exit(main())
