"""Checks once the ranks are a process group: an all-reduce adds up, and all ranks have the same configuration and data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from stylegan_dist.config import Change, Config, changes_of, dotted, to_dict
from stylegan_dist.engine.rendezvous import name_ranks, name_values
from stylegan_dist.errors import InputError, RankLost
from stylegan_dist.ranks import COMMUNICATION, Ranks, host_name

ROUND_BYTES, ROUNDS = 2**24, 3


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
