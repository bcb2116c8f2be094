"""Two processes that sum numbers, as the ranks of a run do: over NCCL where there are two GPUs, else over gloo."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from stylegan_dist.doctor.child import last_line, python_command
from stylegan_dist.doctor.record import Check, Finding, Options, error, ok, warning

SECONDS = 30  # for both


def _all_reduce(_: Options) -> Iterator[Finding]:
    import torch

    gpus = torch.cuda.device_count()
    device = "cuda" if gpus > 1 else "cpu"
    try:
        yield ok("all-reduce", run_ranks(device))
    except RuntimeError as wrong:
        text = f"two processes on {'two GPUs' if gpus > 1 else 'the CPU'} do not work together: {wrong}"
        remedy = ("name the network interface in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (lo for one machine); "
                  + ("NCCL_DEBUG=INFO says more; train on one GPU meanwhile" if gpus > 1 else "one process needs no network"))
        yield (error if gpus > 1 else warning)("all-reduce", text, remedy)


def run_ranks(device: str, seconds: float = SECONDS) -> str:
    """Let two ranks of a run meet; returns what they have measured, for people.

    Raises:
        RuntimeError: they do not meet in time, or one of them fails; with the last line of what it says on stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = time.monotonic() + seconds
    ranks = []
    with contextlib.ExitStack() as started:
        for rank in range(2):
            env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            process = started.enter_context(subprocess.Popen(
                python_command(__name__, "take_part", device, str(seconds)), env=env, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"))
            started.callback(process.kill)
            ranks.append(process)
        said, late = [], False
        for process in ranks:
            try:
                said.append(process.communicate(timeout=max(0.0, ends - time.monotonic())))
            except subprocess.TimeoutExpired:
                late = True
                process.kill()
                said.append(process.communicate())
    # One that was killed, or lost the other, is a consequence.
    if failed := sorted((rank for rank in range(2) if ranks[rank].returncode),
                        key=lambda rank: (ranks[rank].returncode == -signal.SIGKILL, "lost" in said[rank][1])):
        line = last_line(said[failed[0]][1]) or f"exit code {ranks[failed[0]].returncode}"
        raise RuntimeError(f"nothing within {seconds:g} s ({line})" if late else f"rank {failed[0]}: {line}")
    found = json.loads(said[0][0].splitlines()[-1])
    return f"two processes, {found['backend']}: {found['network']}"


def take_part(words: Sequence[str]) -> None:
    """Be one of the ranks: all checks of a launch, of which some are all-reduces with known sums.

    Args:
        words: "cpu" or "cuda", and for how many seconds to wait for the other.
    """
    import torch.distributed

    from stylegan_dist.config.schema import RunConfig
    from stylegan_dist.engine import Engine
    from stylegan_dist.errors import InputError, RankLost

    try:
        engine = Engine(RunConfig(device=words[0], world_size=2, threads=1, timeout=float(words[1])))  # type: ignore[arg-type]
    except (InputError, RankLost) as wrong:
        print(wrong, file=sys.stderr)
        os._exit(1)  # gloo's threads would abort the process, and say so
    if engine.is_main:
        print(json.dumps({"backend": torch.distributed.get_backend(), "network": engine.describe_network()}), flush=True)
    engine.close()


CHECKS = (
    Check("all-reduce", _all_reduce, SECONDS + 10, "name the network interface in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME",
          ("PyTorch", "libraries", "GPU")),
)
