"""Slurm's commands, and how Slurm writes times."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stylegan_dist.errors import InputError
from stylegan_dist.records import shorten

ANSWER_SECONDS = 30  # for a controller that has much to do
_ALIVE = {"PENDING": "queued", "CONFIGURING": "queued", "REQUEUED": "queued", "REQUEUE_HOLD": "held", "REQUEUE_FED": "queued",
          "SPECIAL_EXIT": "held", "RUNNING": "running", "COMPLETING": "ending", "SUSPENDED": "suspended",
          "STOPPED": "suspended", "SIGNALING": "running", "STAGE_OUT": "ending", "RESIZING": "running"}


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job that has not ended.

    Attributes:
        reason: why it waits.
        partition: in which it is.
    """

    number: str
    state: Literal["queued", "held", "running", "ending", "suspended"]
    reason: str = ""
    partition: str = ""


def call(*command: str, env: Mapping[str, str] | None = None) -> str:
    """What a command of Slurm prints.

    Args:
        env: its environment; None for that of this process.

    Raises:
        InputError: there is no Slurm here, it refuses, or it does not answer.
    """
    if shutil.which(command[0]) is None:
        raise InputError(f"there is no {command[0]} here: run this on a login node of a Slurm cluster, or try one on this "
                         "machine with slurm/local-cluster start")
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                              timeout=ANSWER_SECONDS, check=False, env=env)
    except subprocess.TimeoutExpired:
        raise InputError(f"Slurm does not answer: {command[0]} has said nothing for {ANSWER_SECONDS} s; try again "
                         "later") from None
    if done.returncode:
        said = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        raise InputError(f"{command[0]} refuses: {'; '.join(filter(None, said)) or f'exit code {done.returncode}'}")
    return done.stdout


def job_of(number: str) -> Job | None:
    """A job that is queued or running; None where it has ended, or there is no Slurm here.

    Raises:
        InputError: Slurm does not answer.
    """
    if shutil.which("scontrol") is None or not re.fullmatch(r"[0-9]+(_[0-9]+)?", number):
        return None
    try:
        text = call("scontrol", "--oneliner", "show", "job", number)
    except InputError as error:
        if "Invalid job id" in str(error):  # Slurm forgets jobs some minutes after their end
            return None
        raise
    fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
    reason = fields.get("Reason", "").replace("None", "")
    state = _ALIVE.get(fields.get("JobState", ""))
    if state is None:
        return None
    if state == "queued" and "held" in reason.lower():
        state = "held"
    return Job(number, state, reason, fields.get("Partition", ""))  # type: ignore[arg-type]


def cluster_name() -> str:
    """The name that this Slurm has for itself; empty where there is none, or it does not answer."""
    with contextlib.suppress(InputError):
        return _cluster_name(os.environ.get("SLURM_CONF", ""))
    return ""


@functools.cache
def _cluster_name(_config: str) -> str:
    for line in call("scontrol", "show", "config").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "ClusterName":
            return value.strip()
    return ""


def seconds_of(time: str) -> float:
    """A time limit as Slurm writes it: MINUTES, M:S, H:M:S, D-H, D-H:M or D-H:M:S, or UNLIMITED.

    Raises:
        InputError: it is none.
    """
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    match = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", time)
    if match is None:
        raise InputError(f"--time={shorten(time)} must be a time as Slurm writes it, such as 24:00:00, 2-12:00:00 or 90 "
                         "(minutes)")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        hours, minutes, seconds = first, second, third
    else:
        hours, minutes, seconds = 0, first, second
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
