"""What comes before the first step: is the world what was promised, and does every rank run the same thing?

First a roll call. Each rank leaves a note about itself in the store through which a process group is made, which
needs no group yet: it can say who is missing where a group would only hang, and ends what would make it hang.
Then the group must prove that it can add. Last, when they are known, configuration and data are compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate
import numpy
import PIL
import torch
import torch.distributed as dist

import stylegan_dist
from stylegan_dist.config import Change, Config, changes_of, dotted, to_dict
from stylegan_dist.errors import InputError, LocalInputError, RankLost
from stylegan_dist.training.engine.choice import Choice
from stylegan_dist.training.engine.launch_check import asks_for_cpu, number_of
from stylegan_dist.training.engine.ranks import COMMUNICATION, Ranks, host_name

# What must be the same on all ranks before they connect, and what to do where it is not.
SAME = {
    "number of processes": "start all machines with the same --num_processes and --num_machines",
    "engine": "start all machines with the same --config_file",
    "device": "run nvidia-smi where a GPU is missing, or set run.device",
    "code of stylegan_dist": "install the same version on all machines",
    "Python": "use the same environment on all machines",
    "torch": "use the same environment on all machines",
    "accelerate": "use the same environment on all machines",
    "deepspeed": "use the same environment on all machines",
    "numpy": "use the same environment on all machines",
    "Pillow": "use the same environment on all machines",
}
ROUND_BYTES, ROUNDS = 2**24, 3


def patience(timeout: float) -> float:
    """Seconds that ranks wait for each other at the start, where `timeout` is run.timeout: at most 60 by default."""
    return max(min(60.0, timeout), timeout / 10)


# The roll call

def find_gpu(device: str, env: Mapping[str, str]) -> str | None:
    """A name that no other GPU in the world has, of the one that this process is to use; None for a CPU.

    Args:
        device: "auto", "cuda" or "cpu".
        env: the environment variables.
    Raises:
        InputError: there is no such GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("run.device=cuda but PyTorch sees no GPU: install a CUDA build of PyTorch, or set run.device=cpu")
    if device == "cpu" or asks_for_cpu(env) or not torch.cuda.is_available():
        return None
    processes, number = number_of(env, "LOCAL_WORLD_SIZE", 1), number_of(env, "LOCAL_RANK", 0)
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise InputError(f"{processes} processes on this machine but only {gpus} GPUs: correct --num_processes, or set "
                         "run.device=cpu")
    if number >= gpus:
        raise InputError(f"LOCAL_RANK={number} but this process sees only {gpus} GPUs: give each process one of them by "
                         "LOCAL_RANK, counted from 0")
    return str(torch.cuda.get_device_properties(number).uuid)


def note_of_this_rank(env: Mapping[str, str], choice: Choice, device: str, promised: int | str) -> dict[str, Any]:
    """What the others must know of this process: "same", "gpu" and "machines", the number that srun started it on.

    Args:
        env: the environment variables.
        choice: what moves the gradients.
        device: "auto", "cuda" or "cpu".
        promised: `run.world_size`.
    Raises:
        InputError: there is no such device.
    """
    gpu = find_gpu(device, env)
    settings = {name: dict(zero.buffers) for name, zero in choice.zero.items() if zero.buffers}
    same = {
        "number of processes": env.get("WORLD_SIZE", "1"),
        "engine": f"{choice.describe()} {settings or ''}".strip(),
        "device": "cpu" if gpu is None else "cuda",
        "code of stylegan_dist": hash_code(Path(stylegan_dist.__file__).parent)[:12],
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "numpy": numpy.__version__,
        "Pillow": PIL.__version__,
    }
    if choice.zero:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            same["deepspeed"] = importlib.metadata.version("deepspeed")
    machines = number_of(env, "SLURM_STEP_NUM_NODES", 1) if promised == "auto" else 1
    return {"same": same, "gpu": gpu, "machines": machines}


def hash_code(package: Path) -> str:
    """SHA-256 over the names and contents of a package's Python files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if not path.name.startswith("."):  # an editor's lock is a link that leads nowhere
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def judge(notes: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> str | None:
    """What is wrong with a world of these ranks, in one line, or None.

    Args:
        notes: of all ranks in their order; either "error", or what `note_of_this_rank` returns.
        hosts: the names of their machines.
    """
    if failed := [rank for rank, note in enumerate(notes) if "error" in note]:
        first = notes[failed[0]]["error"]
        alike = [rank for rank in failed if notes[rank]["error"] == first]
        return first if len(alike) == len(notes) else f"{name_ranks(alike, hosts)}: {first}"
    for name, remedy in SAME.items():
        values = [note["same"].get(name, "not there") for note in notes]
        if len(set(values)) > 1:
            return f"the ranks differ in {name}: {name_values(values, hosts)}; {remedy}"
    for note in notes:
        sharing = [other for other, their in enumerate(notes) if note["gpu"] is not None and their["gpu"] == note["gpu"]]
        if len(sharing) > 1:
            return (f"{name_ranks(sharing, hosts)} use the same GPU, {note['gpu']}: start one process a GPU, each with its own "
                    "LOCAL_RANK or CUDA_VISIBLE_DEVICES")
    asked, there = max(note["machines"] for note in notes), len(set(hosts))
    if asked > there:
        return (f"srun started this on {asked} machines, but {name_ranks(range(len(notes)), hosts)} are all there are: give "
                "accelerate launch --num_machines, --machine_rank and --main_process_ip, and the number of all processes as "
                "--num_processes; or set run.world_size if each machine trains a run of its own")
    return None


class RollCall:
    """Wait until all ranks are there, and end if they cannot be one run.

    Args:
        env: with RANK, MASTER_ADDR and MASTER_PORT, unless there is one rank only.
        world_size: how many must come.
        wait: seconds.
        examine: makes the note of this rank. Where it raises InputError, all ranks do.
    Raises:
        RankLost: ranks that are not there in time, by number.
        InputError: what `judge` says.
    """

    def __init__(self, env: Mapping[str, str], world_size: int, wait: float, examine: Callable[[], dict[str, Any]]):
        self.rank, self.world_size, self.wait = number_of(env, "RANK", 0), world_size, wait
        self.note: dict[str, Any] = {}
        self.hosts = [host_name()]  # the machines of all ranks, in their order
        if world_size == 1:
            self.note = examine()
            return
        try:
            self.note = examine()
        except InputError as error:
            self.note = {"error": str(error)}
        address = f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
        try:
            self._store = open_store(env, wait)
            self._arrive(json.dumps({"host": host_name(), "process": os.getpid(), **self.note}))
            verdict = self._verdict()
        except RuntimeError as error:  # all that torch's stores raise
            reason = str(error).strip().partition("\n")[0]
            raise RankLost(f"rank {self.rank} on {host_name()} cannot reach the others through {address}: see whether that is "
                           "the first machine (--main_process_ip), as seen from this one, and what it says "
                           f"({reason})") from None
        self.hosts = verdict["hosts"]
        if verdict["lost"]:
            raise RankLost(verdict["lost"])
        if verdict["wrong"]:
            raise InputError(verdict["wrong"])

    def _arrive(self, note: str) -> None:
        if self._store.add(f"number/{self.rank}", 1) > 1:
            other = json.loads(self._store.get(f"note/{self.rank}"))
            message = (f"two processes are rank {self.rank}: one on {other['host']} (process {other['process']}), one on "
                       f"{host_name()} (process {os.getpid()}); give each machine its own --machine_rank")
            self._announce(wrong=message)
            raise LocalInputError(message)
        self._store.set(f"note/{self.rank}", note)
        if self._store.add("count", 1) == self.world_size:
            self._store.set("complete", "")

    def _verdict(self) -> dict[str, Any]:
        """Rank 0 judges when all are there, or whoever's patience ends first; all read the same."""
        if not self._appears("complete" if self.rank == 0 else "verdict", self.wait):
            keys = [f"note/{rank}" for rank in range(self.world_size)]
            missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            if missing:
                self._announce(lost=self._describe_missing(missing))
            elif self.rank > 0 and not self._appears("verdict", 5.0):  # rank 0 may have come in this moment
                self._announce(lost=f"rank 0 came and then said nothing for {self.wait:g} s: see what its machine says")
        if self.rank == 0 and not self._store.check(["verdict"]):
            notes = [json.loads(text) for text in self._store.multi_get([f"note/{rank}" for rank in range(self.world_size)])]
            hosts = [note["host"] for note in notes]
            self._announce(wrong=judge(notes, hosts), hosts=hosts)
        verdict = json.loads(self._store.get("verdict"))
        self._store.add("read", 1)
        if self.rank == 0 and (verdict["lost"] or verdict["wrong"]):
            self._serve_the_others()
        return verdict

    def _serve_the_others(self) -> None:
        """The store ends with the rank that serves it."""
        deadline = time.monotonic() + 5
        while self._store.add("read", 0) < self._store.add("count", 0) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _appears(self, key: str, seconds: float) -> bool:
        with contextlib.suppress(dist.DistStoreError):  # what it raises when time is up
            self._store.wait([key], timedelta(seconds=seconds))
        return self._store.check([key])

    def _describe_missing(self, missing: Sequence[int]) -> str:
        there = [json.loads(self._store.get(f"note/{rank}"))["host"] for rank in range(self.world_size) if rank not in missing]
        return (f"{name_ranks(missing)} of {self.world_size} did not come within {self.wait:g} s; the others are on "
                f"{', '.join(sorted(set(there)))}: see whether all machines were started and what they say; if they only start "
                "slowly, set run.timeout to ten times the seconds to wait")

    def _announce(self, lost: str | None = None, wrong: str | None = None, hosts: Sequence[str] = ()) -> None:
        self._store.set("verdict", json.dumps({"lost": lost, "wrong": wrong, "hosts": list(hosts)}))
        self._store.set("complete", "")


def open_store(env: Mapping[str, str], wait: float) -> dist.Store:
    """The store of the process group to come, served by the launcher or, where there is none, by rank 0."""
    served = env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and env["RANK"] == "0"
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), None, served, timedelta(seconds=wait),
                          wait_for_workers=False, multi_tenant=True)  # the group will serve at the same port
    return dist.PrefixStore(f"stylegan_dist/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


# The process group

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
    """Let the ranks of the process group, and its store, wait for each other that long from now on."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))
    dist.distributed_c10d._get_default_store().set_timeout(timedelta(seconds=seconds))


# Configuration and data

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


# Words

def name_values(values: Sequence[str], hosts: Sequence[str]) -> str:
    """For example "1 on rank 0 (a), 2 on ranks 1-3 (b, c)"."""
    return ", ".join(f"{value} on {name_ranks([r for r, other in enumerate(values) if other == value], hosts)}"
                     for value in dict.fromkeys(values))


def name_ranks(ranks: Sequence[int], hosts: Sequence[str] = ()) -> str:
    """For example "ranks 0-2, 5 (a, b)"; `hosts` are those of all ranks, if known."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    numbers = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    names = list(dict.fromkeys(hosts[rank] for rank in ranks)) if hosts else []
    where = f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else ""
    return f"rank{'s' * (len(ranks) > 1)} {numbers}{where}"
