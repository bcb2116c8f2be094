"""Before the process group exists, each rank registers in its TCP store, so that missing ranks can be named.

A process group would only hang where a rank is missing. The store needs no group. Rank 0 reads all registrations and
decides whether they can be one run: the same code, libraries and engine, and a GPU for each rank.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import stylegan_dist
from stylegan_dist.engine.choice import Choice
from stylegan_dist.engine.launch_check import asks_for_cpu, number_of
from stylegan_dist.errors import InputError, LocalInputError, RankLost
from stylegan_dist.ranks import host_name

MISSING = "not there"
# What to do where ranks differ.
REMEDIES = {
    "number of processes": "start all machines with the same --num_processes and --num_machines",
    "engine": "start all machines with the same --config_file",
    "device": "run nvidia-smi where a GPU is missing, or set run.device",
    "code of stylegan_dist": "install the same version on all machines",
}
OTHER_REMEDY = "use the same environment on all machines"  # of Python and libraries


def patience(timeout: float) -> float:
    """Seconds that ranks wait for each other at the start, where `timeout` is run.timeout: at most 60 by default."""
    return max(min(60.0, timeout), timeout / 10)


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


def registration_of_this_rank(env: Mapping[str, str], choice: Choice, device: str, promised: int | str) -> dict[str, Any]:
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
    libraries = ["accelerate", "numpy", "Pillow"] + ["deepspeed"] * bool(choice.zero)
    same = {
        "number of processes": env.get("WORLD_SIZE", "1"),
        "engine": f"{choice.describe()} {settings or ''}".strip(),
        "device": "cpu" if gpu is None else "cuda",
        "code of stylegan_dist": hash_code(Path(stylegan_dist.__file__).parent)[:12],
        "Python": platform.python_version(),
        "torch": torch.__version__,  # which also says for which CUDA
        **{name: version_of(name) for name in libraries},
    }
    machines = number_of(env, "SLURM_STEP_NUM_NODES", 1) if promised == "auto" else 1
    return {"same": same, "gpu": gpu, "machines": machines}


def version_of(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def hash_code(package: Path) -> str:
    """SHA-256 over the names and contents of a package's Python files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if not path.name.startswith("."):  # an editor's lock is a link that leads nowhere
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def judge(registrations: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> str | None:
    """What is wrong with a world of these ranks, in one line, or None.

    Args:
        registrations: of all ranks in their order; either "error", or what `registration_of_this_rank` returns.
        hosts: the names of their machines.
    """
    everyone = range(len(registrations))
    if failed := [rank for rank in everyone if "error" in registrations[rank]]:
        first = registrations[failed[0]]["error"]
        alike = [rank for rank in failed if registrations[rank]["error"] == first]
        return first if len(alike) == len(everyone) else f"{name_ranks(alike, hosts)}: {first}"
    for name in dict.fromkeys(name for its in registrations for name in its["same"]):
        values = [its["same"].get(name, MISSING) for its in registrations]
        if len(set(values)) > 1:
            return f"the ranks differ in {name}: {name_values(values, hosts)}; {REMEDIES.get(name, OTHER_REMEDY)}"
    for gpu in dict.fromkeys(its["gpu"] for its in registrations):
        sharing = [rank for rank in everyone if registrations[rank]["gpu"] == gpu]
        if gpu is not None and len(sharing) > 1:
            return (f"{name_ranks(sharing, hosts)} use the same GPU, {gpu}: start one process a GPU, each with its own "
                    "LOCAL_RANK or CUDA_VISIBLE_DEVICES")
    asked, there = max(its["machines"] for its in registrations), len(set(hosts))
    if asked > there:
        return (f"srun started this on {asked} machines, but {name_ranks(everyone, hosts)} are all there are: give "
                "accelerate launch --num_machines, --machine_rank and --main_process_ip, and the number of all processes as "
                "--num_processes; or set run.world_size if each machine trains a run of its own")
    return None


class Rendezvous:
    """Wait until all ranks are there, and end if they cannot be one run.

    Args:
        env: with RANK, MASTER_ADDR and MASTER_PORT, unless there is one rank only.
        world_size: how many must come.
        wait: seconds.
        examine: makes the registration of this rank. Where it raises InputError, all ranks do.
    Attributes:
        registration: of this rank.
        hosts: the machines of all ranks, in their order.
    Raises:
        RankLost: ranks that are not there in time, by number.
        InputError: what `judge` says.
    """

    def __init__(self, env: Mapping[str, str], world_size: int, wait: float, examine: Callable[[], dict[str, Any]]):
        self.rank, self.world_size, self.wait = number_of(env, "RANK", 0), world_size, wait
        self.hosts = [host_name()]
        try:
            self.registration = examine()
        except InputError as error:
            if world_size == 1:
                raise
            self.registration = {"error": str(error)}
        if world_size == 1:
            return
        try:
            self._store = open_store(env, wait)
            self._register()
            verdict = self._verdict()
        except RuntimeError as error:  # all that torch's stores raise
            reason = str(error).strip().partition("\n")[0]
            address = f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
            raise RankLost(f"rank {self.rank} on {host_name()} cannot reach the others through {address}: see whether that is "
                           "the first machine (--main_process_ip), as seen from this one, and what it says "
                           f"({reason})") from None
        self.hosts = verdict["hosts"]
        if verdict["lost"]:
            raise RankLost(verdict["lost"])
        if verdict["wrong"]:
            raise InputError(verdict["wrong"])

    def _register(self) -> None:
        if self._store.add(f"number/{self.rank}", 1) > 1:
            other = self._registration(self.rank)
            message = (f"two processes are rank {self.rank}: one on {other['host']} (process {other['process']}), one on "
                       f"{host_name()} (process {os.getpid()}); give each machine its own --machine_rank")
            self._announce(wrong=message)
            raise LocalInputError(message)
        registration = {"host": host_name(), "process": os.getpid(), **self.registration}
        self._store.set(f"registration/{self.rank}", json.dumps(registration))
        if self._store.add("count", 1) == self.world_size:
            self._store.set("complete", "")

    def _registration(self, rank: int) -> dict[str, Any]:
        return json.loads(self._store.get(f"registration/{rank}"))

    def _verdict(self) -> dict[str, Any]:
        """Rank 0 judges when all are there, or whoever's patience ends first; all read the same."""
        if not self._appears("complete" if self.rank == 0 else "verdict", self.wait):
            missing = [rank for rank in range(self.world_size) if not self._store.check([f"registration/{rank}"])]
            if missing:
                self._announce(lost=self._describe_missing(missing))
            elif self.rank > 0 and not self._appears("verdict", 5.0):  # rank 0 may have come in this moment
                self._announce(lost=f"rank 0 came and then said nothing for {self.wait:g} s: see what its machine says")
        if self.rank == 0 and not self._store.check(["verdict"]):
            texts = self._store.multi_get([f"registration/{rank}" for rank in range(self.world_size)])
            registrations = [json.loads(text) for text in texts]
            hosts = [its["host"] for its in registrations]
            self._announce(wrong=judge(registrations, hosts), hosts=hosts)
        verdict = json.loads(self._store.get("verdict"))
        self._store.add("read", 1)
        if self.rank == 0 and (verdict["lost"] or verdict["wrong"]):
            deadline = time.monotonic() + 5  # the store ends with the rank that serves it
            while self._store.add("read", 0) < self._store.add("count", 0) and time.monotonic() < deadline:
                time.sleep(0.01)
        return verdict

    def _appears(self, key: str, seconds: float) -> bool:
        with contextlib.suppress(dist.DistStoreError):  # what it raises when time is up
            self._store.wait([key], timedelta(seconds=seconds))
        return self._store.check([key])

    def _describe_missing(self, missing: Sequence[int]) -> str:
        there = {self._registration(rank)["host"] for rank in range(self.world_size) if rank not in missing}
        return (f"{name_ranks(missing)} of {self.world_size} did not come within {self.wait:g} s; the others are on "
                f"{', '.join(sorted(there))}: see whether all machines were started and what they say; if they only start "
                "slowly, set run.timeout to ten times the seconds to wait")

    def _announce(self, lost: str | None = None, wrong: str | None = None, hosts: Sequence[str] = ()) -> None:
        self._store.set("verdict", json.dumps({"lost": lost, "wrong": wrong, "hosts": list(hosts)}))
        self._store.set("complete", "")


def open_store(env: Mapping[str, str], wait: float, may_serve: bool = True) -> dist.Store:
    """The store of the process group to come, served by the launcher or, where there is none, by rank 0.

    Args:
        wait: seconds for connecting, and for each answer.
        may_serve: whether rank 0 serves it with this object.
    """
    served = may_serve and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and env["RANK"] == "0"
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), None, served, timedelta(seconds=wait),
                          wait_for_workers=False, multi_tenant=may_serve)  # the group will serve at the same port
    return dist.PrefixStore(f"stylegan_dist/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


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
