"""What is in use on the machines of a run. W&B measures that of rank 0 alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import psutil
import torch

SHOWN_NODES = 16  # one by one; of more, the least, the median and the most
_NAMES = ("cpu_percent", "memory_gib", "gpu_memory_gib")

Usage = tuple[float, float, float]  # percent of all cores since the last look, GiB of the machine, GiB of this rank's GPU


def usage(device: torch.device) -> Usage:
    """What is in use now on this machine, by everybody."""
    free, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)
    memory = psutil.virtual_memory()
    return psutil.cpu_percent(), (memory.total - memory.available) / 2**30, (total - free) / 2**30


def node_metrics(hosts: Sequence[str], used: Sequence[Usage]) -> dict[str, float]:
    """Metrics of the machines: of a GPU that of the rank with the most.

    Args:
        hosts: the machines of all ranks; they are numbered in this order.
        used: by all ranks.
    """
    nodes = list(dict.fromkeys(hosts))
    found: dict[str, float] = {}
    for number, name in enumerate(_NAMES):
        if not any(one[number] for one in used):  # no GPUs
            continue
        values = [max(one[number] for host, one in zip(hosts, used, strict=True) if host == node) for node in nodes]
        if len(nodes) <= SHOWN_NODES:
            found |= {f"node/{node}/{name}": value for node, value in enumerate(values)}
        else:
            found |= {f"node/least/{name}": min(values), f"node/median/{name}": statistics.median(values),
                      f"node/most/{name}": max(values)}
    return found
