"""Checks once the ranks are a process group.

An all-reduce adds up, every device multiplies matrices rightly and about as fast as the others, and all ranks have the same
configuration and data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from stylegan_dist.config import Change, Config, changes_of, dotted, to_dict
from stylegan_dist.engine.rendezvous import name_ranks, name_values
from stylegan_dist.errors import InputError, RankLost
from stylegan_dist.machine import supports_bf16
from stylegan_dist.ranks import COMMUNICATION, Ranks, host_name

ROUND_BYTES, ROUNDS = 2**24, 3

# A product of square matrices: rows, and how many products in a row take some milliseconds.
PRODUCT = {"cpu": (512, 1), "cuda": (4096, 10)}
WARM_SECONDS, TIMED_SECONDS = 0.2, 0.1  # a GPU that has idled needs some time to reach its clock
LEAST_PRODUCTS = 3  # of the rounds in each of these times; a very slow device takes longer than they are
SLOW = {"cpu": 0.5, "cuda": 0.8}  # share of the median rate; processes share the cores of a CPU


@contextlib.contextmanager
def connecting(hosts: Sequence[str]) -> Iterator[None]:
    """Errors of the first communication between ranks that have all come become RankLost."""
    try:
        yield
    except RuntimeError as error:
        if len(hosts) == 1 or not re.search(COMMUNICATION, str(error)):
            raise
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()  # its threads would abort the process at its end
        reason = str(error).strip().splitlines()[-1]
        raise RankLost(f"{name_ranks(range(len(hosts)), hosts)} came but do not reach each other: if none has ended with an "
                       "error of its own, name the network interface between the machines in NCCL_SOCKET_IFNAME and "
                       f"GLOO_SOCKET_IFNAME, and check that no firewall is between them ({reason})") from error


def measure_network(ranks: Ranks) -> float:
    """Add 16 MiB over the ranks three times, and check the sums.

    Returns: bytes per second that a rank sends in the fastest round, as an all-reduce of n ranks must move at least
    2 (n - 1) / n of the data through each of them (Patarasuk and Yuan 2009).
    Raises:
        RuntimeError: a sum is wrong.
    """
    fastest = float("inf")
    for _ in range(ROUNDS):
        values = torch.full((ROUND_BYTES // 4,), float(ranks.rank + 1), device=ranks.device)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        dist.all_reduce(values)
        float(values[0])  # waits for the device
        fastest = min(fastest, time.perf_counter() - began)
        low, high = (float(value) for value in values.aminmax())
        expected = ranks.world_size * (ranks.world_size + 1) / 2
        if (low, high) != (expected, expected):
            raise RuntimeError(f"an all-reduce over {ranks.world_size} ranks gave {low:g} to {high:g} instead of {expected:g} "
                               f"on {host_name()}: a fault of the network or of a GPU")
    return 2 * (ranks.world_size - 1) / ranks.world_size * ROUND_BYTES / fastest


@dataclass(frozen=True)
class Compute:
    """How fast the devices of all ranks multiply matrices.

    Attributes:
        rates: floating point operations a second of each rank, in their order.
        slow: what a person should know of ranks that are slower than the others; empty if none is.
    """

    rates: list[float]
    slow: str = ""

    def describe(self) -> str:
        """One line for the header of a run."""
        low, high = (f"{rate / 1e12:.3g}" for rate in (min(self.rates), max(self.rates)))
        return f"{high} TFLOP/s in a matrix product" if len(self.rates) == 1 else (
            f"{low} to {high} TFLOP/s per rank in a matrix product")


def measure_compute(ranks: Ranks, hosts: Sequence[str]) -> Compute:
    """Multiply matrices on all ranks at once, as machines share power and cores when they train; takes some tenths of a second.

    Raises:
        InputError: a device computes something else than the product; with its rank and machine.
    """
    ranks.gather(None)  # all begin together
    rate, right = _multiply(ranks.device)
    everyone = ranks.gather([rate, right])
    if wrong := [rank for rank, (_, right) in enumerate(everyone) if not right]:
        what = "GPU" if ranks.device.type == "cuda" else "CPU"
        raise InputError(f"the {what} of {name_ranks(wrong, hosts)} computes a wrong product of two matrices: its hardware or "
                         "driver is at fault; leave that machine out, and have it checked")
    rates = [rate for rate, _ in everyone]
    median = statistics.median_high(rates)
    slow = [rank for rank, rate in enumerate(rates) if rate < SLOW[ranks.device.type] * median]
    if not slow:
        return Compute(rates)
    slow.sort(key=rates.__getitem__)
    worst = ", ".join(f"{name_ranks([rank], hosts)} {rates[rank] / 1e12:.3g}" for rank in slow[:8])
    more = f" and {len(slow) - 8} more" if len(slow) > 8 else ""
    return Compute(rates, f"slow in a matrix product, with a median of {median / 1e12:.3g} TFLOP/s: {worst}{more}; all other "
                          "ranks will wait for the slowest (see whether something else runs there, or a GPU is hot)")


@torch.no_grad()
def _multiply(device: torch.device) -> tuple[float, bool]:
    """Floating point operations a second in the fastest round, and whether the product was right."""
    size, repetitions = PRODUCT[device.type]
    dtype = torch.float32
    if device.type == "cuda":
        dtype = torch.bfloat16 if supports_bf16("cuda") else torch.float16
    # Small whole numbers, of which each pair of terms but the last cancels out, so that no type and no order of the sum rounds.
    number = torch.arange(size, device=device)
    rows, columns, inner = 1 + number % 3, 1 + number % 2, 1 + number // 2 % 3
    left = (rows[:, None] * inner).to(dtype)
    right = (torch.where(number % 2 == 0, inner, -inner)[:, None] * columns).to(dtype)
    right[-1] = 0
    expected = (rows[:, None] * columns * inner[-1] ** 2).to(dtype)
    product = torch.empty_like(expected)

    def fastest(seconds: float) -> float:
        best, begun, rounds = float("inf"), time.perf_counter(), 0
        while rounds < LEAST_PRODUCTS or time.perf_counter() - begun < seconds:
            began = time.perf_counter()
            for _ in range(repetitions):
                torch.mm(left, right, out=product)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best, rounds = min(best, time.perf_counter() - began), rounds + 1
        return best

    fastest(WARM_SECONDS if device.type == "cuda" else 0.0)
    rate = 2 * size**3 * repetitions / fastest(TIMED_SECONDS)
    is_right = torch.equal(product, expected)
    if device.type == "cuda":
        del left, right, expected, product
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return rate, is_right


def set_timeout(seconds: float) -> None:
    """Let the ranks of all process groups, and the store of the default one, wait for each other that long from now on.

    DeepSpeed makes groups of its own. torch has no public way to list groups, or to change their timeouts.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
    dist.distributed_c10d._get_default_store().set_timeout(timedelta(seconds=seconds))


def check_agreement(ranks: Ranks, hosts: Sequence[str], config: Config, fingerprint: str) -> None:
    """All ranks must have the same resolved configuration, knobs that ranks may have for themselves apart, and the same data.

    Raises:
        InputError: what differs, with the values and their ranks.
    """
    mine = dotted(to_dict(config))
    same = [key for key, change in changes_of(config).items() if change is not Change.PER_RANK]
    compared = json.dumps([[(key, mine[key]) for key in same], fingerprint])
    if len(set(ranks.gather(hashlib.sha256(compared.encode()).hexdigest()))) == 1:
        return
    everyone = ranks.gather([mine, fingerprint])  # only now: it is much
    if len({data for _, data in everyone}) > 1:
        values = [f"{c['data.shards']} with SHA-256 {data[:12]}" for c, data in everyone]
        raise InputError(f"the ranks have different data: {name_values(values, hosts)}; give all machines the same shards, "
                         "`stylegan-dist verify` says which are whole")
    differing = [f"{key} is {name_values(values, hosts)}" for key in same
                 for values in [[str(c[key]) for c, _ in everyone]] if len(set(values)) > 1]
    more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise InputError(f"the ranks have different configurations: {'; '.join(differing[:3])}{more}; start all of them with the "
                     "same command, and set what was auto where machines are not alike")
