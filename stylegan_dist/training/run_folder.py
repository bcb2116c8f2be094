"""The folder of a run: its locks, its configuration, and the point from which the run continues."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from stylegan_dist.config import Change, Config, changes_of, config_of, dotted, dump_config, load_config, to_dict
from stylegan_dist.errors import InputError
from stylegan_dist.files import try_lock, write_whole
from stylegan_dist.monitor.history import PICTURES_NAME, SAMPLES_NAME
from stylegan_dist.training.checkpoint import FOLDER, checkpoint_folder, newest_whole_checkpoint
from stylegan_dist.training.lease import Lease, read_status
from stylegan_dist.training.saved import IMPORTED, load_state

CONFIG_NAME = "config.yaml"
PICTURES = ("truncation.png", "classes.png", "interpolation.png", "interpolation.gif")  # which a training writes there
LOCK_NAME = ".lock"
# The reader processes of a trainer that was killed hold its lock until they have ended, too.
LOCK_SECONDS = 10.0


class RunFolder:
    """A run's folder, locked for this process until it ends. For rank 0.

    There are two locks. Network file systems can lock a file. A lock of the folder holds even if that file is deleted. Where
    locks have no effect, there is the lease.

    Attributes:
        before: what an earlier start has told of the run.
        lease: the claim of this process, and what it tells of the run.
        close: releases the folder; the lease says "failed" then, unless it was released before.
    Raises:
        InputError: the folder cannot be written, or another process trains in it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._held: list[int] = []
        leases: list[Lease] = []
        self.close = weakref.finalize(self, _close, self._held, leases)  # also where this process goes on after an error
        self._config = ""  # the text of the configuration, once it is there
        with self._writing():
            (self.path / SAMPLES_NAME).mkdir(parents=True, exist_ok=True)
            self._held.append(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY))
            self._held.append(os.open(self.path / LOCK_NAME, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666))
        deadline = time.monotonic() + LOCK_SECONDS
        while not all(try_lock(held, needed=False) for held in self._held):
            if time.monotonic() > deadline:
                self.close()
                status = read_status(self.path)
                who = f", {status.owner.describe()}" if status and status.state in ("starting", "running") else ""
                raise InputError(f"another process is training in {self.path}{who}: wait for it, or choose another run.dir")
            time.sleep(0.1)
        self._check_place()
        self.before = read_status(self.path)
        with self._writing():
            self.lease = Lease(self.path)
        leases.append(self.lease)
        pictures = (f"{PICTURES_NAME}/{name}.tmp" for name in PICTURES)
        for pattern in ("config.yaml.tmp", "metrics.jsonl*.tmp", "histograms.jsonl*.tmp", f"{SAMPLES_NAME}/*.png.tmp",
                        f"{SAMPLES_NAME}/*.wav.tmp", f"{SAMPLES_NAME}/*.gif.tmp", f"{SAMPLES_NAME}/*.txt.tmp", *pictures):
            for leftover in self.path.glob(pattern):  # of a process that was killed while it wrote
                with contextlib.suppress(OSError):
                    leftover.unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (InputError, OSError) as error:
            self.close()
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot write to the run's folder {self.path}: {error.strerror}; choose another "
                             "run.dir") from None

    def check(self) -> None:
        """Make sure that the run's folder is still there and this process's own, and says what the run is.

        Raises:
            InputError: it was deleted, moved or replaced.
            TakenOver: another process continues the run.
        """
        self._check_place()
        self.lease.check()
        if self._config and not os.path.lexists(self.path / CONFIG_NAME):  # the folder was emptied: new checkpoints need it
            with contextlib.suppress(OSError):
                write_whole(self.path / CONFIG_NAME, self._config)

    def _check_place(self) -> None:
        try:
            there = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            there = None
        except OSError:  # perhaps a short fault of the network; the next write shows it
            return
        if there is None or not os.path.samestat(there, os.fstat(self._held[0])):
            raise InputError(f"the run's folder {self.path} was {'replaced' if there else 'deleted or moved'} while the run "
                             "was going on, so nothing more can be saved: move it back if you have it, and run the same "
                             "command again")

    def save_config(self, config: Config) -> None:
        """Write the resolved configuration."""
        self._config = dump_config(config)
        write_whole(self.path / CONFIG_NAME, self._config)


def starting_point(path: Path, config: Config, data_fingerprint: str) -> tuple[int, list[str]]:
    """Where the run in a folder continues.

    Returns: images seen at the newest whole checkpoint (0 for a new run), and lines that the user
        should read: damaged checkpoints passed over, settings that have changed.
    Raises:
        InputError: the run was trained with other data or networks than configured now, or all its checkpoints are
            damaged.
    """
    nimg, damage = newest_whole_checkpoint(path)
    if nimg == 0:
        if damage:  # a start at 0 would overwrite checkpoints that can perhaps be repaired
            raise InputError(f"no checkpoint in {path / FOLDER} is whole: {damage[0]}"
                             + (f"; and {len(damage) - 1} older ones" if damage[1:] else "")
                             + ": restore the files of one; to begin anew, choose another run.dir or move that folder away")
        return 0, []
    lines = [f"passing over a damaged checkpoint: {problem}" for problem in damage]
    state = load_state(checkpoint_folder(path, nimg))
    if state.data.fingerprint.startswith(IMPORTED):
        raise InputError(f"{path} was imported without data and optimizers, so it cannot be continued: begin a new run from it "
                         f"with run.init_from={path} and another run.dir")
    if state.data.fingerprint != data_fingerprint:
        raise InputError(f"{path} was trained on other data than {config.data.shards}: choose another run.dir, "
                         "or set data.shards to the data it was started with")
    # A knob that did not exist then had what is its default now.
    before = dotted(to_dict(config_of(config.generator.family))) | dotted(state.config)
    now, changes = dotted(to_dict(config)), changes_of(config)
    for key in now:
        if before[key] in (now[key], "auto") or changes[key] in (Change.SILENT, Change.PER_RANK):
            continue
        if changes[key] is Change.FIXED:
            raise InputError(f"{path} was trained with {key}={before[key]}, not {now[key] or repr(now[key])}: choose another "
                             f"run.dir, or set {key} back")
        lines.append(f"changed since the last start: {key} = {now[key]} (was {before[key]})")
    return nimg, lines


def _close(held: list[int], leases: list[Lease]) -> None:
    while leases:
        leases.pop().release()
    while held:
        with contextlib.suppress(OSError):
            os.close(held.pop())


def read_run_config(path: Path) -> Config:
    """The resolved configuration of a run.

    Raises:
        InputError: there is none.
    """
    if not os.path.isfile(path / CONFIG_NAME):
        raise InputError(f"{path} is not the folder of a run: it has no {CONFIG_NAME}")
    return load_config(path / CONFIG_NAME)
