"""Setup of a run: data and configuration, folder and starting point, networks, stream and monitor."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from stylegan_dist.config import Config, to_dict
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.data.working_set import open_cache
from stylegan_dist.engine import Engine
from stylegan_dist.engine.preflight import check_agreement
from stylegan_dist.errors import InputError, Interrupted
from stylegan_dist.monitor.monitor import Monitor, NullMonitor
from stylegan_dist.ops import native
from stylegan_dist.redact import redact
from stylegan_dist.training.checkpoint import checkpoint_folder
from stylegan_dist.training.compiled import networks_to_compile, why_not_compiled
from stylegan_dist.training.interruption import why_nohup_fails
from stylegan_dist.training.plan import Execution, header_facts, load_index_of, stream_plan, working_set_of
from stylegan_dist.training.rules import resolve, steps_in
from stylegan_dist.training.run_folder import RunFolder
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.timing import PhaseTimer

DATA_SHARE = 0.9  # of run.timeout, for a rank to say that it has no data before the others give up waiting for it


class Run:
    """One start of a run, on one rank.

    Attributes:
        config: without `auto`; `resolved` says what else follows from the data.
        total: images to see in the whole run.
        folder: None except on rank 0.
        cache: None where all data is local.
        to_compile: the networks that the first step is to compile.
        stream: None where the run was finished before.
        monitor: shows and records on rank 0, and does nothing elsewhere.
    """

    def __init__(self, config: Config, engine: Engine):
        self.engine = engine
        self.index = engine.together(lambda: load_index_of(config))
        self.resolved = engine.together(lambda: resolve(config, self.index, engine.world))
        self.config = self.resolved.config
        self.dir = Path(self.config.run.dir)
        self.total = steps_in(self.config) * self.config.run.batch
        check_agreement(engine, engine.hosts, self.config, self.index.fingerprint)
        set_arithmetic(self.config)

        self.folder: RunFolder | None = None
        start, self.notices = engine.broadcast(engine.on_main(self._claim_folder))
        self.cache = engine.together(lambda: self._open_cache(start))
        self.state = TrainState(self.resolved, self.index, engine.device, engine)
        if start:
            engine.together(lambda: self._restore(start))
        self.no_compile = why_not_compiled(self.config, any(engine.shards(name) for name in self.state.networks))
        self.to_compile = () if self.no_compile else networks_to_compile(engine.device.type)
        self.timer = PhaseTimer(engine.device)
        self.stream: BatchStream | None = None
        self.monitor: Monitor | NullMonitor = NullMonitor()

    def check_folder(self) -> None:
        """Raises InputError where the run's folder is no longer there. For rank 0."""
        assert self.folder is not None
        self.folder.check()

    def _claim_folder(self) -> tuple[int, list[str]]:
        """Lock the folder; says where the run continues, and what the user should read of that."""
        self.folder = RunFolder(self.dir)
        return self.folder.starting_point(self.config, self.index.fingerprint)

    def _open_cache(self, nimg: int) -> NodeCache | None:
        d, hosts, rank = self.config.data, self.engine.hosts, self.engine.rank
        here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
        size = working_set_of(self.config, self.index, nimg, self.engine.world_size, here)
        return open_cache(d.cache, d.cache_gb, self.index, size, claim=rank == here[0], verify=d.verify)

    def _restore(self, nimg: int) -> None:
        folder = checkpoint_folder(self.dir, nimg)
        if not folder.is_dir():
            raise InputError(f"rank 0 continues from {folder}, which is not there on {platform.node()}: run.dir must be a "
                             "folder that all nodes share")
        self.state.restore(folder)

    def _open_stream(self) -> BatchStream:
        d, timeout, engine = self.config.data, self.config.run.timeout, self.engine
        plan = stream_plan(self.config, self.state.nimg, engine.world_size, engine.rank)
        readers = ReaderOptions(d.workers, d.prefetch, engine.device.type == "cuda", d.verify,
                                DATA_SHARE * timeout if engine.world_size > 1 else timeout)
        return BatchStream(self.index, plan, readers, self.cache)

    def _open_monitor(self) -> Monitor:
        assert self.folder is not None  # runs on rank 0
        self.folder.save_config(self.config)
        settings = self.config.monitor if self.stream else replace(self.config.monitor, wandb="disabled")  # nothing to record
        monitor = Monitor(self.dir, self.state.segment, self.state.nimg, self.total, settings, to_dict(self.config))
        execution = Execution(self.engine.describe(), self.engine.describe_network(), self.no_compile, self.engine.no_graphs)
        monitor.header(header_facts(self.resolved, self.index, self.state, execution))
        for notice in (*self.notices, why_nohup_fails(os.environ)):
            if notice:
                monitor.warn(notice)
        return monitor


@contextlib.contextmanager
def open_run(config: Config, engine: Engine) -> Iterator[Run]:
    """A run that is ready to train. Every end of it is written to the log and to W&B, and closes everything.

    Raises:
        InputError: configuration, data or launch are wrong.
        RankLost: with the ranks that are late, by name.
    """
    with engine.late_ranks_named():
        run = Run(config, engine)
    exit_code = 1
    try:
        with engine.late_ranks_named(), contextlib.ExitStack() as opened:  # while there is a log.txt to name them in
            if run.state.nimg < run.total:
                run.stream = run._open_stream()  # before the monitor: it forks processes, the monitor starts a thread
                opened.callback(run.stream.close)
            run.monitor = engine.on_main(run._open_monitor) or run.monitor
            yield run
        exit_code = 0
    except Interrupted:
        exit_code = 75
        raise
    except Exception as error:  # the terminal may be gone when a person looks for the reason
        first = str(error).strip().partition("\n")[0]
        run.monitor.note(redact(f"error: {first or type(error).__name__}"))
        raise
    finally:
        run.monitor.finish(exit_code)
        if run.folder is not None:
            run.folder.close()
        if run.cache is not None:
            run.cache.release()


def set_arithmetic(config: Config) -> None:
    """Process-wide settings that change the bits of results."""
    native.select(config.ops.path)
    torch.backends.cuda.matmul.allow_tf32 = config.precision.tf32
    torch.backends.cudnn.allow_tf32 = config.precision.tf32
    torch.backends.cudnn.deterministic = config.run.deterministic
    torch.backends.cudnn.benchmark = not config.run.deterministic
