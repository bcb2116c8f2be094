"""What this process may use of its machine, and what it has used."""

from __future__ import annotations

import os
import resource
import sys

import torch


def available_cores() -> int:
    """CPU cores that this process may run on; a batch system often gives fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def supports_bf16(device_type: str) -> bool:
    """Whether the device computes in bfloat16 natively."""
    return device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on the GPU, or on a CPU the largest size of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
