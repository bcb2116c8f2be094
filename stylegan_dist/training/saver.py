"""Saves checkpoints in the background: training stops only while the state is copied to the host.

A thread of each rank writes its files. The threads use no collective, which would get between those of training. Each but that
of rank 0 leaves a record in the unfinished checkpoint. The thread of rank 0 waits for the records, completes the checkpoint and
removes old ones. All ranks learn what came of it together, when they next ask.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from stylegan_dist.config.schema import Config
from stylegan_dist.errors import Diverged, InputError
from stylegan_dist.files import replacing
from stylegan_dist.ranks import Ranks
from stylegan_dist.records import parse_json
from stylegan_dist.training.checkpoint import (
    Tensors,
    judge,
    make_room,
    new_part,
    prune_checkpoints,
    publish,
    staged,
    write_file,
)
from stylegan_dist.training.lease import Lease, TakenOver
from stylegan_dist.training.saved import checkpoint_folder
from stylegan_dist.training.tensor_file import Cancelled, TensorFile

MAX_RECORD = 1 << 24           # bytes
LEAST_PAUSE, MOST_PAUSE = 0.01, 0.5  # seconds between two looks for records
TIMEOUT_SHARE = 0.8            # of run.timeout: to wait for a disk, before the other ranks give up waiting for this one
GIVE_UP_SECONDS = 10.0         # for a thread to end that was told so


@dataclass(frozen=True)
class Outcome:
    """What came of a save, the same on all ranks.

    Attributes:
        nimg: images seen at the checkpoint.
        seconds: that writing it took, on rank 0.
        diverged: which value is not finite; empty if all are.
        taken: who has taken over the run; empty if nobody has.
        failure: why the checkpoint is not there otherwise; empty if it is there.
        warnings: what a person should hear.
    """

    nimg: int
    seconds: float = 0.0
    diverged: str = ""
    taken: str = ""
    failure: str = ""
    warnings: list[str] = field(default_factory=list)


class _Save:
    """One save in flight, on one rank."""

    def __init__(self, nimg: int, temporary: Path, files: dict[str, TensorFile], state: str):
        self.nimg, self.temporary, self.files, self.state = nimg, temporary, files, state
        self.part: dict[str, Any] | None = None    # of this rank, when it has ended
        self.told: dict[int, dict[str, Any]] = {}  # parts of other ranks, as far as the loop has heard of them
        self.outcome: Outcome | None = None        # on rank 0
        self.part_ended, self.ended, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None


class Saver:
    """Saves the checkpoints of a run, one at a time. All ranks make one, and call its methods together, but `close`.

    Args:
        lease: on rank 0, of the run's folder.
    """

    def __init__(self, run_dir: Path, ranks: Ranks, config: Config, lease: Lease | None = None):
        self._run_dir, self._ranks, self._config, self._lease = run_dir, ranks, config, lease
        self._timeout = TIMEOUT_SHARE * config.run.timeout
        self._save: _Save | None = None
        self._number = 0  # of saves that were begun
        self._buffers: dict[str, Tensor] = {}

    def begin(self, nimg: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Start a save; `wait` must have been called before. The tensors may change when this returns.

        Args:
            tensors: file name without ending -> tensors by name.
            state: what state.json holds.
        Raises:
            InputError: there is no room for it. On all ranks.
        """
        assert self._save is None
        ranks, final = self._ranks, checkpoint_folder(self._run_dir, nimg)
        token = self._lease.owner.token if self._lease else ""
        self._number += 1
        name = ranks.broadcast(ranks.on_main(lambda: make_room(final, token, self._number).name))
        files = dict(staged(tensors, int(self._config.checkpoint.file_mib * 2**20), ranks, self._buffers))
        save = _Save(nimg, final.with_name(name), files, json.dumps(state, indent=1))
        thread = threading.Thread(target=self._work, args=(save,), daemon=True, name="checkpoint")
        thread.start()
        save.thread, self._save = thread, save

    def look(self) -> Outcome | None:
        """What came of the save in flight; None if there is none, or if it has not ended."""
        return self._take(wait=False)

    def wait(self) -> Outcome | None:
        """Wait for the save in flight, no longer than `run.timeout`; None if there is none."""
        return self._take(wait=True)

    def _take(self, wait: bool) -> Outcome | None:
        save, ranks = self._save, self._ranks
        if save is None:
            return None
        deadline = time.monotonic() + self._timeout
        if wait:
            save.part_ended.wait(self._timeout)  # here, so that a rank that is late is seen to be late
        # Where a file system shows a record late or has no room for it, rank 0 hears of the part in this way.
        for rank, part in enumerate(ranks.gather(save.part)):
            if part is not None:
                save.told[rank] = part
        outcome = save.outcome
        if wait and ranks.is_main:
            save.ended.wait(max(0.0, deadline - time.monotonic()))
            outcome = save.outcome or Outcome(save.nimg, failure="the disk has not taken it within run.timeout="
                                                                 f"{self._config.run.timeout:g} seconds")
        answer = ranks.broadcast(outcome and asdict(outcome))
        if answer is None:
            return None
        self.close(0)  # rank 0 may have given up waiting for this one
        return Outcome(**answer)

    def close(self, seconds: float) -> None:
        """Wait for the save in flight no longer than so many seconds, then give it up. Needs no other rank."""
        save, self._save = self._save, None
        if save is not None and save.thread is not None:
            save.ended.wait(seconds)
            save.cancelled.set()
            save.thread.join(GIVE_UP_SECONDS)
            if save.thread.is_alive():  # a disk that does not answer
                self._buffers.clear()

    def _work(self, save: _Save) -> None:
        """The thread of this rank."""
        began, part = time.monotonic(), new_part()
        try:
            for name, file in save.files.items():
                write_file(part, save.temporary, name, file, self._ranks.rank, save.cancelled.is_set)
            if not self._ranks.is_main and not save.cancelled.is_set():
                with contextlib.suppress(OSError), replacing(_record(save.temporary, self._ranks.rank)) as path:
                    path.write_text(json.dumps(part))
            save.part = part  # after the record, so that nothing is written into a checkpoint that is complete
            save.part_ended.set()
            if self._ranks.is_main:
                save.outcome = self._complete(save, began)
        except BaseException as error:  # the others would wait for ever
            text = f"{type(error).__name__}: {error}"
            save.part, save.outcome = save.part or part | {"failure": text}, Outcome(save.nimg, failure=text)
        finally:
            save.part_ended.set()
            save.ended.set()

    def _complete(self, save: _Save, began: float) -> Outcome:
        """Put the checkpoint in its place, when all ranks have written their parts, and remove old ones. On rank 0."""
        final, c = checkpoint_folder(self._run_dir, save.nimg), self._config

        def permit() -> None:
            if save.cancelled.is_set():
                raise Cancelled("the checkpoint was given up")
            if self._lease is not None:
                self._lease.check(surely=True)

        try:
            try:
                parts = self._parts(save)
                judge(parts)
                publish(save.temporary, final, save.state, parts, permit)
            except BaseException:
                shutil.rmtree(save.temporary, ignore_errors=True)
                raise
        except Diverged as error:
            return Outcome(save.nimg, diverged=str(error))
        except TakenOver as error:
            return Outcome(save.nimg, taken=str(error))
        except (InputError, OSError) as error:
            return Outcome(save.nimg, failure=str(error))
        seconds = time.monotonic() - began
        try:
            return Outcome(save.nimg, seconds,
                           warnings=prune_checkpoints(self._run_dir, c.checkpoint, c.run.batch, permit))
        except TakenOver as error:
            return Outcome(save.nimg, taken=str(error))
        except (InputError, OSError) as error:
            return Outcome(save.nimg, seconds, warnings=[f"an old checkpoint cannot be removed: {error}"])

    def _parts(self, save: _Save) -> list[dict[str, Any]]:
        """What all ranks have to say of their parts; their records are removed."""
        assert save.part is not None
        parts, ranks = {0: save.part}, range(1, self._ranks.world_size)
        deadline, pause = time.monotonic() + self._timeout, LEAST_PAUSE
        while missing := [rank for rank in ranks if rank not in parts]:
            for rank in missing:
                if part := save.told.get(rank) or _read(_record(save.temporary, rank)):
                    parts[rank] = part
            if time.monotonic() > deadline:
                raise InputError(f"rank {missing[0]} has not written its part within {self._timeout:g} seconds")
            if save.cancelled.wait(pause):
                raise Cancelled("the run ended before all ranks had written their parts")
            pause = min(2 * pause, MOST_PAUSE)
        for rank in ranks:
            _record(save.temporary, rank).unlink(missing_ok=True)
        return [parts[rank] for rank in range(self._ranks.world_size)]


def _record(temporary: Path, rank: int) -> Path:
    return temporary / f"part-{rank:05d}.json"


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return parse_json(path.read_bytes(), MAX_RECORD)
    return None
