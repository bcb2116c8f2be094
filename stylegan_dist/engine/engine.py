"""The engine of a run: Accelerate launches, DeepSpeed or data parallel training moves the gradients."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import nn

from stylegan_dist.config.schema import RunConfig
from stylegan_dist.engine.choice import choose_engine, forget_plugin
from stylegan_dist.engine.data_parallel import BucketLearner, FlatLearner
from stylegan_dist.engine.deepspeed_adapter import load_deepspeed
from stylegan_dist.engine.graphs import CudaRecorder, GraphLearner, why_no_graphs
from stylegan_dist.engine.launch_check import check_environment, check_joined, forget_unreadable_numbers, number_of
from stylegan_dist.engine.learner import Learner
from stylegan_dist.engine.preflight import connecting, measure_compute, measure_network, set_timeout
from stylegan_dist.engine.rendezvous import Rendezvous, patience, registration_of_this_rank
from stylegan_dist.engine.stacks import STACKS_NAME, record_collectives
from stylegan_dist.engine.watch import Watch, connection_closed
from stylegan_dist.engine.watchdog import Watchdog
from stylegan_dist.engine.zero import ZeroLearner
from stylegan_dist.errors import InputError, RankLost
from stylegan_dist.machine import available_cores, supports_bf16
from stylegan_dist.ranks import Ranks, World, host_name

END_SECONDS = 300.0  # that one of several processes may take to end after it has told the others so


class Engine(Ranks):
    """The ranks of a run, and what makes networks learn on them.

    Args:
        settings: the section `run` of the configuration, of which `auto` may stand for device, world_size, threads,
            reduction and cuda_graphs.
    Attributes:
        compute: how fast the devices multiply matrices.
        on_death: functions that are called with the error where a step hangs so long that a thread ends this process.
    Raises:
        InputError: a launch that cannot be what was meant.
        RankLost: not all ranks came.
    """

    def __init__(self, settings: RunConfig):
        threads, reduction = settings.threads, settings.reduction
        launched = check_environment(os.environ, settings.world_size, settings.device)
        if threads != "auto" and int(threads) < 1:
            raise InputError(f"run.threads={threads} must be at least 1, or auto")
        self.timeout = settings.timeout
        wait = patience(self.timeout)

        def examine() -> dict[str, Any]:  # what is wrong here, such as a missing file, all ranks will say
            self.choice = choose_engine(os.environ)
            return registration_of_this_rank(os.environ, self.choice, settings.device, settings.world_size)

        # Needed until the process group exists: it may serve the store through which that is made.
        rendezvous = Rendezvous(os.environ, launched, wait, examine)
        forget_plugin(os.environ)
        forget_unreadable_numbers(os.environ)
        self.hosts = rendezvous.hosts
        on_cpu = rendezvous.registration["gpu"] is None
        if self.choice.zero:
            load_deepspeed(cpu=on_cpu)  # before there is a process group, see there
        if not on_cpu:
            record_collectives(os.environ, Path(settings.dir) / STACKS_NAME)
        self.network = 0.0  # bytes per second of a rank in a large all-reduce; 0 if it is alone
        with connecting(self.hosts):
            # mixed_precision="no": the networks have a precision policy of their own.
            self._accelerator = Accelerator(
                cpu=on_cpu, mixed_precision="no",
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=wait))],
            )
            super().__init__(self._accelerator.process_index, self._accelerator.num_processes, self._accelerator.device)
            check_joined(launched, self.world_size)
            if launched > 1:
                self.network = measure_network(self)
                set_timeout(self.timeout)
        self.local_world_size = number_of(os.environ, "LOCAL_WORLD_SIZE", self.hosts.count(host_name()))
        if threads == "auto":
            threads = max(1, available_cores() // self.local_world_size)
        torch.set_num_threads(int(threads))
        try:
            with connecting(self.hosts):
                self.compute = measure_compute(self, self.hosts)
        except InputError:
            if dist.is_initialized():
                dist.destroy_process_group()  # gloo's threads would abort the process at its end
            raise
        self._watch = Watch(os.environ, self.hosts, self.where, self.timeout) if launched > 1 else None
        self._watchdog = Watchdog(self, self.hosts, self._watch, settings.hang_seconds, self.timeout)
        self.on_death = self._watchdog.on_death
        self._learners: weakref.WeakSet[Learner] = weakref.WeakSet()
        self.no_graphs = why_no_graphs(settings.cuda_graphs, self.device.type, bool(self.choice.zero),
                                       reduction if self.world_size > 1 else "flat")
        self._recorder = None if self.no_graphs else CudaRecorder(self.device)
        self.reduction = reduction
        if reduction == "auto":  # on CPUs nothing is there to overlap with, and a graph ends before the reduction
            self.reduction = "buckets" if self.device.type == "cuda" and self.no_graphs else "flat"

    @property
    def world(self) -> World:
        return World(self.world_size, self.device.type, supports_bf16(self.device.type), self.shards("g"))

    def shards(self, network: str) -> bool:
        """Whether no rank holds the whole of "g" or "d"."""
        zero = self.choice[network]
        return zero is not None and zero.stage == 3

    def learner(self, name: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> Learner:
        """Make a network learn. To be called once for each, in the same order on all ranks.

        Args:
            name: "g" or "d".
            network: whole, with the same values on all ranks.
            optimizer: of its parameters, fresh.
        """
        learner: Learner
        if zero := self.choice[name]:
            learner = ZeroLearner(network, optimizer, self, zero, self.timeout)
        elif self.world_size > 1 and self.reduction == "buckets":
            learner = BucketLearner(network, optimizer, self)
        elif self._recorder:
            learner = GraphLearner(network, optimizer, self, self._recorder)
        else:
            learner = FlatLearner(network, optimizer, self)
        self._learners.add(learner)
        return learner

    def enter(self, doing: str, nimg: int, step: bool = False) -> None:
        super().enter(doing, nimg, step)
        self._watchdog.entered(step)

    @contextlib.contextmanager
    def watching_steps(self, run_dir: Path, interval: int, note: Callable[[str], None]) -> Iterator[None]:
        """Inside, a training step that hangs is reported, and in the end the process is ended, as if a rank were lost.

        Args:
            run_dir: the run's folder.
            interval: the steps between two of the rarest phase.
            note: takes lines for a log.
        """
        if self.device.type == "cuda":
            with contextlib.suppress(OSError):  # NCCL's recorder makes no folder
                (run_dir / STACKS_NAME).mkdir(exist_ok=True)
        with self._watchdog.watching_steps(run_dir / STACKS_NAME, interval, note):
            yield

    def describe(self) -> str:
        """One line for the header of a run."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        if self.choice.zero:
            how = self.choice.describe()
        elif self.world_size == 1:
            how = "no communication"
        else:
            how = "data parallel, " + {"flat": "one flat all-reduce per phase", "buckets": "DDP"}[self.reduction]
        return f"{self.world_size} x {name}, {how}"

    def describe_network(self) -> str:
        """One line for the header of a run; empty if this rank is alone."""
        machines = len(set(self.hosts))
        if not self.network:
            return ""
        return f"{self.network / 1e9:.2g} GB/s per rank in an all-reduce, {machines} machine{'s' * (machines > 1)}"

    def say_end(self, error: BaseException | None = None) -> None:
        """Tell the other ranks how this one ends; from now on this process has `END_SECONDS` to do so."""
        self._watchdog.end()
        if self._watch is not None:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self._watch.end("the run is finished" if error is None else reason, isinstance(error, RankLost), error is not None)
            with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # stderr is closed or no file
                faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=sys.stderr)

    @contextlib.contextmanager
    def late_ranks_named(self) -> Iterator[None]:
        """A RankLost in here also says who is late, where that was, and how to go on; the others hear that this rank ends."""
        try:
            yield
        except RankLost as error:
            self._watchdog.end()
            late = "" if self._watch is None else f"; {self._watch.who_is_late(connection_closed(str(error)))}"
            self.say_end(error)
            raise RankLost(f"{error}{late}; the run continues from its last checkpoint") from None

    def close(self) -> None:
        """Leave the process group; without this some backends abort at exit. No learner is to be used after."""
        # Gloo's threads may need the interpreter lock to end, and the last owner of the group waits for them. A handle
        # of Python's gives the lock away while it waits; DDP's reducer does not, so it must not be the last.
        group = dist.group.WORLD if dist.is_initialized() else None
        for learner in self._learners:
            learner.close()
        gc.collect()  # DDP refers to itself
        with contextlib.suppress(Exception):
            self._accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()
        del group
        self._watchdog.end()
        if self._watch is not None:
            faulthandler.cancel_dump_traceback_later()
