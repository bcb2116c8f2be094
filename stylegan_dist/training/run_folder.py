"""The folder of a run: who may write there, what it was trained with, where it continues."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any

from stylegan_dist.config import Config, dump_config, load_config, to_dict
from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.training.checkpoint import checkpoint_folder, load_state, newest_whole_checkpoint

CONFIG_NAME = "config.yaml"
SAMPLES_NAME = "samples"
# The reader processes of a trainer that was killed hold its lock until they notice, which takes 5 seconds.
LOCK_SECONDS = 10.0
# A run that continues with another value of one of these would not be the same run.
IDENTITY = ("run.seed", "data.conditional", "data.mirror", "data.lanes", "data.block", "generator", "discriminator",
            "optim.g.name", "optim.d.name", "optim.g.momentum", "optim.d.momentum")
# These may differ between two starts of one run without a word.
INCIDENTAL = ("run.dir", "run.kimg", "run.batch_gpu", "run.recompute", "run.world_size", "run.device", "run.threads",
              "run.timeout", "run.reduction", "run.cuda_graphs", "ema.placement", "data.shards", "data.workers",
              "data.prefetch", "data.cache", "data.cache_gb", "data.max_bad_fraction", "monitor", "checkpoint")


class RunFolder:
    """A run's folder, locked for this process until it ends. For rank 0.

    Raises:
        InputError: the folder cannot be written, or another process trains in it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            (self.path / SAMPLES_NAME).mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the process ends
        except OSError as error:
            raise InputError(
                f"cannot write to the run's folder {self.path}: {error.strerror}; choose another run.dir"
            ) from None
        deadline = time.monotonic() + LOCK_SECONDS
        while self._locked_by_another():
            if time.monotonic() > deadline:
                self._lock.close()
                raise InputError(
                    f"another process is training in {self.path}: wait for it, or choose another run.dir"
                )
            time.sleep(0.1)

    def _locked_by_another(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EWOULDBLOCK, errno.EACCES)  # not: a network file system without locks
        return False

    def starting_point(self, config: Config, data_fingerprint: str) -> tuple[int, list[str]]:
        """Where the run continues.

        Returns: images seen at the newest whole checkpoint (0 for a new run), and lines that the user
            should read: damaged checkpoints passed over, settings that have changed.
        Raises:
            InputError: the run was trained with other data or networks than configured now.
        """
        nimg, damage = newest_whole_checkpoint(self.path)
        lines = [f"passing over a damaged checkpoint: {problem}" for problem in damage]
        if nimg == 0:
            return 0, lines
        state = load_state(checkpoint_folder(self.path, nimg))
        if state["data"]["fingerprint"] != data_fingerprint:
            raise InputError(f"{self.path} was trained on other data than {config.data.shards}: choose another run.dir, "
                             "or set data.shards to the data it was started with")
        # A knob that did not exist then had what is its default now.
        before = _flat(to_dict(Config())) | _flat(state["config"])
        now = _flat(to_dict(config))
        for key in now:
            if before[key] == now[key] or _within(key, INCIDENTAL):
                continue
            if _within(key, IDENTITY):
                raise InputError(f"{self.path} was trained with {key}={before[key]}, not {now[key]}: choose another "
                                 f"run.dir, or set {key} back")
            lines.append(f"changed since the last start: {key} = {now[key]} (was {before[key]})")
        return nimg, lines

    def save_config(self, config: Config) -> None:
        """Write the resolved configuration."""
        write_whole(self.path / CONFIG_NAME, dump_config(config))

    def close(self) -> None:
        """Give the folder free."""
        with contextlib.suppress(OSError):
            self._lock.close()


def read_run_config(path: Path) -> Config:
    """The resolved configuration of a run.

    Raises:
        InputError: there is none.
    """
    if not os.path.isfile(path / CONFIG_NAME):
        raise InputError(f"{path} is not the folder of a run: it has no {CONFIG_NAME}")
    return load_config(path / CONFIG_NAME)


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def _within(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)
