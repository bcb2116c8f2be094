"""The resources of this machine that the process may use, and those it has used.

PyTorch is imported by the functions that need it, so that `doctor` can use the others where it does not load.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from stylegan_dist import __version__
from stylegan_dist.errors import InputError

if TYPE_CHECKING:
    import torch

LIBRARIES = ("accelerate", "deepspeed", "numpy", "pillow", "safetensors", "tensorboard", "wandb")


def versions() -> Iterator[tuple[str, str]]:
    """What a run computes with, (name, version)."""
    import torch

    yield "stylegan_dist", __version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "PyTorch", torch.__version__
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def name_the_user() -> None:
    """Give the process a user name and a home, where the user has no entry in the list of users, as in many containers.

    The home is that of such users under Docker. Nothing is written there.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError: from Python 3.13 on
        os.environ["USER"] = f"uid{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"


def available_cores() -> int:
    """CPU cores that this process may run on; a batch system often gives fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_device(name: str, what: str = "the device") -> torch.device:
    """The device of that name.

    Args:
        what: it is, for the message.
    Raises:
        InputError: it is not there.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # AssertionError: PyTorch without CUDA
        raise InputError(f"{what} {name} is not there: use cpu, or cuda on a machine with a GPU") from None
    return device


def supports_bf16(device_type: str) -> bool:
    """Whether the device computes in bfloat16 natively."""
    import torch

    return device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on the GPU, or on a CPU the largest size of the whole process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that this process may still allocate on the device.

    Args:
        processes: that share the memory of this machine; every one has a GPU of its own.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return available_host_memory(processes)


def available_host_memory(processes: int = 1) -> int:
    """As `available_memory`, of the CPUs."""
    return min(min(psutil.virtual_memory().available, _memory_of_control_group()) // processes, _memory_below_limits())


def _memory_below_limits() -> int:
    """What `ulimit -v` and `ulimit -d` leave to this process, in bytes."""
    left, page = sys.maxsize, os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):
        pages = [int(word) for word in Path("/proc/self/statm").read_text().split()]
        for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                left = min(left, max(limit - used * page, 0))
    return left


def _memory_of_control_group() -> int:
    """Bytes left by the limits of the containers or batch jobs around this process. Both versions of control groups."""
    left = sys.maxsize
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = Path("/sys/fs/cgroup/memory") if controllers else Path("/sys/fs/cgroup")
            names = (("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file") if controllers
                     else ("memory.max", "memory.current", "inactive_file"))
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):  # the limit of a parent holds, too
                if folder.is_relative_to(root):
                    left = min(left, _left_in(folder, *names))
    return left


def _left_in(folder: Path, limit_name: str, used_name: str, cache_name: str) -> int:
    try:
        limit, used = (folder / limit_name).read_text().strip(), int((folder / used_name).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not limited, or not visible from inside a container
        return sys.maxsize
    if limit == "max":
        return sys.maxsize
    return max(int(limit) - used + int(statistics.get(cache_name, 0)), 0)  # files that are cached make way
