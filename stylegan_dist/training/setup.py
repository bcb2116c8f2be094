"""Setup of a run: data and configuration, folder and starting point, networks, stream and monitor."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stylegan_dist.config import Config, to_dict
from stylegan_dist.data.batches import Batch
from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.data.working_set import open_cache
from stylegan_dist.engine import Engine
from stylegan_dist.engine.preflight import check_agreement
from stylegan_dist.errors import Diverged, InputError, Interrupted
from stylegan_dist.families import family_of
from stylegan_dist.monitor.monitor import Monitor, NullMonitor
from stylegan_dist.monitor.tracker import Segment
from stylegan_dist.ops import native
from stylegan_dist.outcome import leave_outcome
from stylegan_dist.redact import redact
from stylegan_dist.training.compiled import networks_to_compile, why_not_compiled
from stylegan_dist.training.held_out import HeldOut, held_out_plan
from stylegan_dist.training.interruption import forget_requests, why_nohup_fails
from stylegan_dist.training.lease import State
from stylegan_dist.training.plan import Execution, header_facts, load_held_out, load_index_of, stream_plan, working_set_of
from stylegan_dist.training.rules import resolve, steps_in
from stylegan_dist.training.run_folder import RunFolder, starting_point
from stylegan_dist.training.saved import Origin, checkpoint_folder
from stylegan_dist.training.saver import Saver
from stylegan_dist.training.signs import Signs
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.timing import PhaseTimer
from stylegan_dist.training.transfer import open_transfer, record_origin

SAVE_SECONDS = 10.0  # that a run which ends with an error waits for a checkpoint that is being written
DATA_SHARE = 0.9  # of run.timeout, for a rank to say that it has no data before the others give up waiting for it


class Run:
    """One start of a run, on one rank.

    Attributes:
        config: without `auto`; `resolved` says what else follows from the data.
        total: images to see in the whole run.
        folder: None except on rank 0.
        saver: of checkpoints, in the background.
        held_out: None where there are no held-out images, or the run was finished before.
        caches: of the data and of the held-out images, each None where all of it is local.
        to_compile: the networks that the first step is to compile.
        batch: the last one of this rank.
        signs: of collapse, of which rank 0 tells.
        stream: None where the run was finished before.
        until: time.monotonic() at which `run.max_hours` are over.
        monitor: shows and records on rank 0, and does nothing elsewhere.
    """

    def __init__(self, config: Config, engine: Engine):
        self.engine = engine
        self.until = time.monotonic() + (3600 * config.run.max_hours or math.inf)
        self.index = engine.together(lambda: load_index_of(config))
        self.resolved = engine.together(lambda: resolve(config, self.index, engine.world))
        self.config = self.resolved.config
        self.dir = Path(self.config.run.dir)
        self.total = steps_in(self.config) * self.config.run.batch
        check_agreement(engine, engine.hosts, self.config, self.index.fingerprint)
        self.held_out_index = engine.together(lambda: load_held_out(self.config, self.index))
        if len(set(engine.gather(self.held_out_index and self.held_out_index.fingerprint))) > 1:
            raise InputError("the ranks have different images in augment.held_out: give all machines the same shards")
        set_arithmetic(self.config)
        self._transfer = open_transfer(self.resolved, self.index, engine)

        self.folder: RunFolder | None = None
        try:
            self._prepare()
        except Exception as error:
            if self.folder is not None:
                self.folder.lease.release("failed", first_line(error))
                self.folder.close()
            raise

    def _prepare(self) -> None:
        engine = self.engine
        start, self.notices, segment = engine.broadcast(engine.on_main(self._claim_folder))
        prepared = engine.on_main(lambda: self.index.kind.prepared(self.dir))
        kind, lack = prepared or (self.index.kind.at(self.dir), "")
        self.index, self.notices = replace(self.index, kind=kind), [*self.notices, *([lack] if lack else [])]
        lease = self.folder.lease if self.folder else None
        self.saver = Saver(self.dir, engine, self.config, lease)
        self.caches = [engine.together(functools.partial(self._open_cache, index, plan)) if index else None
                       for index, plan in ((self.index, stream_plan(self.config, start, engine.world_size)),
                                           (self.held_out_index, held_out_plan(self.config, start, engine.world_size)))]
        transfer, self._transfer = self._transfer, None  # which holds open files
        self.state = TrainState(self.resolved, self.index, engine.device, engine, None if start else transfer)
        if start:
            engine.together(lambda: self._restore(start))
            self.state.segment = max(self.state.segment, segment)  # starts that saved no checkpoint count
        elif transfer and not engine.agree([transfer.checksum]):
            raise InputError(f"the ranks have read different weights from {transfer.origin.path}: see to its disk, or copy it "
                             "to one that all nodes share")
        self.no_compile = why_not_compiled(self.config, any(engine.shards(name) for name in self.state.networks))
        self.to_compile = () if self.no_compile else networks_to_compile(engine.device.type)
        self.timer = PhaseTimer(engine.device)
        engine.on_computed = self.timer.computed
        engine.on_death.append(self._record_death)
        self.batch: Batch | None = None
        self.signs = Signs(self.config.loss.adversarial)
        self.stream: BatchStream | None = None
        self.held_out: HeldOut | None = None
        self.monitor: Monitor | NullMonitor = NullMonitor()
        self.report(processes=engine.world_size, total=self.total, segment=self.state.segment, nimg=start, checkpoint=start)

    @property
    def cache(self) -> NodeCache | None:
        """Of the data."""
        return self.caches[0]

    def report(self, **facts: Any) -> None:
        """Change what status.json says of the run, see `Lease.update`. The other ranks do nothing."""
        if self.folder is not None:
            self.folder.lease.update(**facts)

    def _record_death(self, text: str) -> None:
        """Leave a word before the watchdog ends this process."""
        leave_outcome("failed", text.removeprefix("error: "))
        if self.folder is not None:
            self.folder.lease.release("failed", text)

    def check_folder(self) -> None:
        """Raises InputError where the run's folder is no longer there, or another process has taken it over. For rank 0."""
        assert self.folder is not None
        self.folder.check()

    def _claim_folder(self) -> tuple[int, list[str], int]:
        """Lock the folder; says where the run continues, what the user should read of that, and how often it was continued."""
        self.folder = RunFolder(self.dir)
        self.folder.lease.where = self.engine.where
        forget_requests(self.dir)
        start, notices = starting_point(self.dir, self.config, self.index.fingerprint)
        last = self.folder.before  # start
        before, now = last.processes if last else 0, self.engine.world_size
        if start and before not in (0, now):
            notices.append(f"continued by {now} process{'es' * (now > 1)}, by {before} before: the samples and random draws "
                           "are the same, and sums are rounded in another order")
        return start, notices, last.segment + 1 if last else 0

    def _open_cache(self, index: DatasetIndex, plan: StreamPlan) -> NodeCache | None:
        d, hosts, rank = self.config.data, self.engine.hosts, self.engine.rank
        here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
        size = working_set_of(self.config, index, plan, here)
        return open_cache(d.cache, d.cache_gb, index, size, claim=rank == here[0], verify=d.verify)

    def _restore(self, nimg: int) -> None:
        folder = checkpoint_folder(self.dir, nimg)
        if not folder.is_dir():
            raise InputError(f"rank 0 continues from {folder}, which is not there on {platform.node()}: run.dir must be a "
                             "folder that all nodes share")
        self.state.restore(folder)

    def _open_streams(self, opened: contextlib.ExitStack) -> None:
        d, timeout, engine = self.config.data, self.config.run.timeout, self.engine
        place = self.state.nimg, engine.world_size, engine.rank
        readers = ReaderOptions(d.workers, d.prefetch, engine.device.type == "cuda", d.verify,
                                DATA_SHARE * timeout if engine.world_size > 1 else timeout)
        self.stream = BatchStream(self.index, stream_plan(self.config, *place), readers, self.cache)
        opened.callback(self.stream.close)
        if self.held_out_index:
            few = replace(readers, workers=min(d.workers, 1))  # they are read every few steps
            self.held_out = HeldOut(self.held_out_index, held_out_plan(self.config, *place), few, self.caches[1])
            opened.callback(self.held_out.stream.close)

    def _open_monitor(self) -> Monitor:
        assert self.folder is not None  # runs on rank 0
        self.folder.save_config(self.config)
        if self.state.nimg == 0:
            record_origin(self.dir, self.state.origin)
        # A run that was finished before has nothing to record.
        settings = self.config.monitor if self.stream else replace(self.config.monitor, wandb="disabled", tensorboard=False)
        shown = shown_config(self.config, self.index.fingerprint, self.state.origin)
        monitor = Monitor(Segment(self.dir, self.state.segment, self.state.nimg), self.total, settings, shown)
        engine = self.engine
        execution = Execution(engine.describe(), engine.describe_network(), engine.compute.describe(), self.no_compile,
                              engine.no_graphs)
        monitor.header(header_facts(self.resolved, self.index, self.state, execution))
        for notice in (*self.notices, engine.compute.slow, why_nohup_fails(os.environ)):
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
    exit_code, patience = 1, 0.0  # patience: seconds, with a checkpoint that is being written
    end: State = "failed"
    message = ""
    try:
        with engine.late_ranks_named(), contextlib.ExitStack() as opened:  # while there is a log.txt to name them in
            if run.state.nimg < run.total:
                run._open_streams(opened)  # before the monitor: it forks processes, the monitor starts a thread
            run.monitor = engine.on_main(run._open_monitor) or run.monitor
            interval = max(phase.interval for phase in run.state.phases)
            opened.enter_context(engine.watching_steps(run.dir, interval, run.monitor.note))
            yield run
        exit_code, end = 0, "finished"
    except Interrupted as error:
        exit_code, end, message, patience = 75, "stopped", first_line(error), SAVE_SECONDS
        raise
    except Exception as error:  # the terminal may be gone when a person looks for the reason
        end, message, patience = "diverged" if isinstance(error, Diverged) else "failed", first_line(error), SAVE_SECONDS
        run.monitor.note(redact(f"error: {message}"))
        raise
    finally:
        run.saver.close(patience)
        run.monitor.finish(exit_code)
        if run.folder is not None:
            run.folder.lease.release(end, message)
            run.folder.close()
        for cache in run.caches:
            if cache is not None:
                cache.release()


def shown_config(config: Config, fingerprint: str, origin: Origin | None) -> dict[str, Any]:
    """What trackers show of a run, but source and versions, which they find themselves."""
    begun_with = {"origin": {"path": origin.path, "nimg": origin.nimg, "sha256": origin.sha256}} if origin else {}
    return {**to_dict(config), "data_fingerprint": fingerprint, **begun_with}


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def set_arithmetic(config: Config) -> None:
    """Process-wide settings that change the bits of results."""
    native.select(config.ops.path)
    torch.backends.cuda.matmul.allow_tf32 = config.precision.tf32
    torch.backends.cudnn.allow_tf32 = config.precision.tf32
    torch.backends.cudnn.deterministic = config.run.deterministic
    torch.backends.cudnn.benchmark = not config.run.deterministic
    if torch.cuda.is_available():
        fixed = config.run.deterministic and family_of(config).attends
        torch.use_deterministic_algorithms(fixed, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if fixed:  # it warns of products that several streams compute at once, which is not done here
            warnings.filterwarnings("ignore", message=".*(deterministic|CUBLAS_WORKSPACE_CONFIG)", category=UserWarning)
