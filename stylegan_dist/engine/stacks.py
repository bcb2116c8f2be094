"""What a process was doing when it hung: the stacks of its threads, and the collectives that NCCL had begun."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from threading import Thread

import torch

from stylegan_dist.last_word import say_line

STACKS_NAME = "stacks"  # in the run's folder
COLLECTIVES = 2000      # that NCCL's flight recorder remembers
WRITE_SECONDS = 5.0     # a folder that does not answer may be why the process hangs

# What switches the recorder on: the name since torch 2.10, the name that all versions before know, and the value. Newer
# versions know the old names, too, but complain about them.
_RECORDER = (
    ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", str(COLLECTIVES)),
    ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "{folder}/nccl-rank-"),
    ("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
)


def record_collectives(env: MutableMapping[str, str], folder: Path, version: str = torch.__version__) -> None:
    """Have NCCL remember its last collectives, and write them to `folder` when one times out. What a user has set stays.

    To be called before the process group is made.

    Args:
        env: the environment variables.
        version: of torch.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    for new, old, value in _RECORDER:
        if new not in env and old not in env:
            env[new if (major, minor) >= (2, 10) else old] = value.format(folder=folder.absolute())


def write_stacks(folder: Path | None, rank: int, title: str) -> str:
    """Append the stacks of all threads of this process to a file of `folder`, and write what NCCL was doing beside it.

    Returns: where the stacks of all ranks are; they go to stderr where the folder is not known or does not answer.
    """
    written: list[bool] = []

    def write() -> None:
        with contextlib.suppress(OSError):
            assert folder is not None
            folder.mkdir(exist_ok=True)
            with open(folder / f"rank-{rank}.txt", "a", encoding="utf-8") as file:
                print(time.strftime("%Y-%m-%d %H:%M:%S"), f"{title}\n", file=file, flush=True)
                faulthandler.dump_traceback(file)
                print(file=file)
            written.append(True)
            # The thread may wait here for a GPU that does not answer.
            if collectives := _collectives():
                (folder / f"nccl-rank-{rank}").write_bytes(collectives)

    if folder is not None:
        run_bounded(write, WRITE_SECONDS)
    if written:
        return f"{folder}/rank-*.txt"
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed or no file
        say_line(f"rank {rank}: {title}")
        faulthandler.dump_traceback(sys.stderr)
    return "stderr of each rank"


def _collectives() -> bytes:
    """The flight recorder of NCCL, as `torchfrtrace` reads it; empty where there is none."""
    with contextlib.suppress(AttributeError, RuntimeError, ImportError):
        if torch.cuda.is_initialized():
            return torch._C._distributed_c10d._dump_nccl_trace()  # type: ignore[attr-defined]
    return b""


def run_bounded(function: Callable[[], object], seconds: float) -> None:
    """Run a function in a thread, and go on after so many seconds whether it has ended or not."""
    thread = Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
