"""GPUs, their driver, and whether this PyTorch has code for them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from stylegan_dist.doctor.record import Check, Finding, Options, error, ok, warning

_WHERE = "see https://pytorch.org/get-started/locally"
_BUSY = 0.5  # share of a GPU's memory that others have, from which on that is said


def _gpus(_: Options) -> Iterator[Finding]:
    import torch

    release = driver_release()
    there = devices_of_system() or int(bool(release))  # WSL has no such devices
    if there:
        yield judge_driver(release, driver_cuda(), torch.version.cuda)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        reason = str(said[-1].message).splitlines()[0] if said else ""
        yield judge_no_gpu(there, torch.version.cuda, reason, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return
    for number in range(torch.cuda.device_count()):
        yield _gpu(number)
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield ok("NCCL", version, version)
    elif torch.cuda.device_count() > 1:
        yield error("NCCL", "not in this PyTorch: several GPUs cannot train together", f"install another build; {_WHERE}")


def _gpu(number: int) -> Finding:
    import torch

    from stylegan_dist.machine import supports_bf16

    name, gpu = f"GPU {number}", torch.cuda.get_device_properties(number)
    if torch.version.cuda and (wrong := judge_code(name, gpu.name, (gpu.major, gpu.minor), torch.cuda.get_arch_list())):
        return wrong
    with torch.cuda.device(number):
        three = int(torch.ones(2, device="cuda").sum() + 1)
        free, whole = torch.cuda.mem_get_info()
        bf16 = supports_bf16("cuda")
    if three != 3:
        return error(name, f"{gpu.name} computes 1 + 1 + 1 = {three}", "leave it out, and have it checked")
    text = (f"{gpu.name}, {free / 2**30:.0f} of {whole / 2**30:.0f} GiB free, compute capability {gpu.major}.{gpu.minor}, "
            f"bfloat16 {'yes' if bf16 else 'no'}")
    if free < _BUSY * whole:
        return warning(name, f"{text}: others use it", "nvidia-smi names them; choose another one with CUDA_VISIBLE_DEVICES")
    return ok(name, text)


def judge_code(name: str, model: str, capability: tuple[int, int], architectures: Sequence[str]) -> Finding | None:
    """An error where a PyTorch has no code that a GPU can run, although it says that the GPU is available.

    Machine code (sm_XY) runs on GPUs of the same major number and a minor one that is not smaller. Code for a virtual
    architecture (compute_XY) is compiled for any later GPU. A letter behind the number ties code to one architecture (a) or
    to its family (f). Source: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility".

    Args:
        name: of the finding.
        capability: of the GPU.
        architectures: as `torch.cuda.get_arch_list` returns them.
    """
    for architecture in architectures:
        if not (found := re.fullmatch(r"(sm|compute)_([0-9]+)([0-9])([af]?)", architecture)):
            continue
        has = int(found[2]), int(found[3])
        if found[4] == "a":
            runs = found[1] == "sm" and has == capability
        elif found[1] == "sm" or found[4] == "f":
            runs = has[0] == capability[0] and has[1] <= capability[1]
        else:
            runs = has <= capability
        if runs:
            return None
    return error(name, f"this PyTorch has no code for {model}, compute capability {capability[0]}.{capability[1]}, but for "
                 f"{', '.join(architectures) or 'none'}",
                 f"install one that has: a newer one for a new GPU, one for an older CUDA for an old GPU; {_WHERE}")


def judge_driver(release: str, driver: tuple[int, int] | None, built_with: str | None) -> Finding:
    """Whether a driver is new enough for a PyTorch. One of the same major number of CUDA is (minor version compatibility).

    Args:
        release: of the driver, or empty.
        driver: the newest CUDA that it serves, if known.
        built_with: the CUDA of PyTorch; None: it has none.
    """
    text = (release or "version unknown") + (f", up to CUDA {driver[0]}.{driver[1]}" if driver else "")
    if driver and built_with and driver[0] < int(built_with.split(".")[0]):
        return error("NVIDIA driver", f"{text}: older than the CUDA {built_with} of this PyTorch",
                     f"update the driver, or install a PyTorch for CUDA {driver[0]}; {_WHERE}")
    if not driver:
        return warning("NVIDIA driver", f"{text}; its library libcuda.so.1 does not load",
                       "install the driver's libraries; a container needs the NVIDIA container toolkit and --gpus all")
    return ok("NVIDIA driver", text)


def judge_no_gpu(there: int, built_with: str | None, reason: str, visible: str | None = None) -> Finding:
    """What to say where PyTorch sees no GPU.

    Args:
        there: GPUs that the system has.
        built_with: the CUDA of PyTorch; None: it has none.
        reason: what PyTorch has said.
        visible: CUDA_VISIBLE_DEVICES, if set.
    """
    if not there:
        return warning("GPU", "none: training computes on the CPU, slowly", "use a machine with an NVIDIA GPU; start a "
                       "container with --gpus all, and ask a batch system for one")
    if visible in ("", "-1"):
        return warning("GPU", f"hidden by CUDA_VISIBLE_DEVICES={visible}: training computes on the CPU, slowly",
                       "unset CUDA_VISIBLE_DEVICES")
    text = f"PyTorch does not see the {there} GPU{'s' * (there > 1)} of this machine"
    if not built_with:
        return error("GPU", f"{text}: it is a build without CUDA", f"install one with CUDA; {_WHERE}")
    return error("GPU", f"{text}{f': {reason}' * bool(reason)}", "see whether nvidia-smi works, and what CUDA_VISIBLE_DEVICES "
                 "names; restart the machine after an update of the driver")


def devices_of_system() -> int:
    """How many GPUs the NVIDIA driver shows to this system."""
    return sum(1 for path in Path("/dev").glob("nvidia*") if re.fullmatch("nvidia[0-9]+", path.name))


def driver_release() -> str:
    """Such as "550.54.15"; empty without a driver."""
    with contextlib.suppress(OSError):
        if found := re.search(r"\s([0-9]+(?:\.[0-9]+)+)\s", Path("/proc/driver/nvidia/version").read_text()):
            return found[1]
    if shutil.which("nvidia-smi"):  # which WSL has, and no /proc/driver
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            said = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                                  text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=15, check=False)
            if said.returncode == 0 and said.stdout.strip():
                return said.stdout.split()[0]
    return ""


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver serves; None without its library."""
    number = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)):
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


CHECKS = (
    Check("GPU", _gpus, 40, "the driver hangs: see what nvidia-smi and dmesg say, and restart the machine", ("PyTorch",)),
)
