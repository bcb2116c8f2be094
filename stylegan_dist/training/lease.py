"""Who trains in a run's folder, also where file systems have no locks.

    RUN/.owners/00000007   the seventh start of the run: which process, on which machine
    RUN/status.json        what the newest start is doing; written anew about every five seconds, and when its state changes

The file of a start is created exclusively, so that one of several claimants is the seventh. It is not removed while that start
can be alive. A process is fenced, which means that it must not change the run any more, as soon as there is an eighth.
status.json alone could not decide this: a process that was stopped just before it renames the file would take the run back.

Times of different machines are never compared. An owner is alive if its file changes while somebody watches.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.ranks import host_name
from stylegan_dist.records import Count, read_record
from stylegan_dist.redact import redact

STATUS_NAME = "status.json"
OWNERS_NAME = ".owners"
BEAT_SECONDS = 5.0
PATIENCE = 3          # beats without which an owner counts as dead
KEPT_OWNERS = 16      # files of former starts
MAX_JSON = 1 << 16    # bytes
MAX_MESSAGE = 1000    # characters
END_SECONDS = 5.0     # for a disk to take the last word

State = Literal["starting", "running", "finished", "stopped", "failed", "diverged"]
_ENDED = ("finished", "stopped", "failed", "diverged")
_Look = tuple[int, tuple[bytes, int]]


class TakenOver(LocalInputError):
    """Another process has taken over the run, because this one gave no sign of life. It must not change the run any more."""


@dataclass(frozen=True)
class Owner:
    """A start of a run.

    Attributes:
        token: of this start alone, in hexadecimal; the first 8 digits are its number.
    """

    token: str = ""
    host: str = ""
    process: Count = 0
    job: str | None = None  # of Slurm
    restart: Count = 0      # how often Slurm has requeued the job

    @property
    def number(self) -> int:
        return number_of(self.token)

    def describe(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"on {self.host or 'an unknown machine'} (process {self.process}{job})"


@dataclass(frozen=True)
class Status:
    """The content of status.json."""

    version: Literal[1]
    owner: Owner
    beat: Count                 # grows with each writing
    time: float                 # unix seconds of the owner's clock
    state: State
    doing: str = ""
    nimg: Count = 0             # images seen
    total: Count = 0            # images to see
    images_per_second: float | None = None
    checkpoint: Count = 0       # images at the newest one; 0 if there is none
    segment: Count = 0          # restarts so far
    processes: Count = 0        # ranks
    message: str = ""           # how it ended


def read_status(run_dir: str | os.PathLike) -> Status | None:
    """What a run says of itself; None where that is missing or cannot be understood.

    After `kill -9` it says "running" for ever. Whether a run is alive shows in that the file changes.
    """
    return _status(_content(Path(run_dir, STATUS_NAME)))


def number_of(token: str) -> int:
    """Which start of the run a token belongs to; 0 for what is no token."""
    try:
        return int(token[:8], 16) if len(token) == 32 else 0
    except ValueError:
        return 0


class Lease:
    """The claim of this process on a run's folder; a thread keeps it alive. For rank 0.

    Args:
        path: the folder.
    Attributes:
        where: tells what this process does and how many images it has seen, for status.json.
    Raises:
        InputError: another process trains there.
        OSError: the folder cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.where: Callable[[], tuple[Any, ...]] | None = None
        (path / OWNERS_NAME).mkdir(exist_ok=True)
        self.owner = _claim(path)
        self._process = os.getpid()
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # the same one, even if it is moved or replaced
        # The numbers of the start before stay, for one that is refused before it has its own.
        before = read_status(path) or Status(1, self.owner, 0, 0.0, "starting")
        self._status = replace(before, owner=self.owner, beat=0, state="starting", doing="starting", images_per_second=None,
                               message="")
        self._changing, self._writing = threading.Lock(), threading.Lock()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._write()
        for name in os.listdir(path):  # of starts that were killed while they wrote
            if name.startswith(f".{STATUS_NAME}.") and number_of(name.split(".")[-2]) < self.owner.number:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._folder)
        self._thread = threading.Thread(target=self._work, daemon=True, name="lease")
        self._thread.start()

    def update(self, **facts: Any) -> None:
        """Change fields of status.json. The thread writes them: at once if `state` or `doing` is one, else with its next beat.

        `doing` and `nimg` are those of `where`, if that is set.
        """
        self._change(**facts)
        if "state" in facts or "doing" in facts:
            self._wake.set()

    def check(self, surely: bool = False) -> None:
        """Make sure that nobody has taken over the run.

        Args:
            surely: before files are removed or get their names. Where the file system does not answer, somebody may have.
        Raises:
            TakenOver: somebody has, or this process has released the run.
            OSError: the file system does not answer, and `surely` was asked for.
        """
        if self._ended.is_set():
            raise TakenOver(f"this process has released the run in {self.path}: it changes nothing there any more")
        if successor := self._successor(surely):
            raise TakenOver(f"another process, {successor.describe()}, has taken over the run in {self.path}, as this one gave "
                            "no sign of life for a while: it ends without saving anything more, and the other goes on")

    def release(self, state: State = "failed", message: str = "") -> None:
        """Write how the run has ended. Others may claim the folder then."""
        if self._ended.is_set() or os.getpid() != self._process:  # readers are forked
            return
        self._ended.set()
        self._wake.set()
        self._thread.join(END_SECONDS)
        text = redact(" ".join(message.split()))[:MAX_MESSAGE]
        self._change(state=state, message=text.encode(errors="replace").decode())  # names of files may be no text
        self._write()
        if not self._thread.is_alive():  # else the disk does not answer, and the thread still has the folder
            os.close(self._folder)

    def _change(self, **facts: Any) -> Status:
        with self._changing:
            self._status = replace(self._status, **facts)
            return self._status

    def _work(self) -> None:
        while True:
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
            if self._ended.is_set():
                return
            self._write()

    def _write(self) -> None:
        """Write status.json as it is now, unless somebody else owns it. A disk that takes nothing is no reason to end."""
        if not self._writing.acquire(timeout=END_SECONDS):  # the thread waits for a disk that does not answer
            return
        try:
            if self._successor():
                return
            if self.where is not None:
                doing, nimg, *_ = self.where()
                self._change(doing=doing, nimg=nimg or self._status.nimg)  # 0 until the loop has begun
            status = self._change(beat=self._status.beat + 1, time=time.time())
            temporary = f".{STATUS_NAME}.{self.owner.token}.tmp"
            try:
                with open(temporary, "w", opener=self._opener) as file:
                    json.dump(asdict(status), file)
                os.replace(temporary, STATUS_NAME, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except OSError:
                with contextlib.suppress(OSError):
                    os.utime(STATUS_NAME, dir_fd=self._folder)  # a sign of life that a full disk takes, too
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=self._folder)
        finally:
            self._writing.release()

    def _opener(self, name: str, flags: int) -> int:
        return os.open(name, flags, 0o666, dir_fd=self._folder)

    def _successor(self, surely: bool = False) -> Owner | None:
        """Who has taken over; None also where that cannot be found out now, unless `surely` lets the error through.

        Each of two looks finds what a network file system may hide from the other for a while.
        """
        name = f"{OWNERS_NAME}/{self.owner.number + 1:08d}"
        passed_over = FileNotFoundError if surely else OSError
        with contextlib.suppress(passed_over):
            os.stat(name, dir_fd=self._folder)
            return _holder(self.path / name)[0]
        with contextlib.suppress(passed_over), open(STATUS_NAME, "rb", opener=self._opener) as file:
            status = _status(file.read(MAX_JSON + 1))
            if status and status.owner.number > self.owner.number:
                return status.owner
        return None


@dataclass(frozen=True)
class _Life:
    """What tells whether a process of this machine still lives; empty where the system does not say."""

    boot: str = ""       # of the machine
    namespace: str = ""  # in which the process has its number
    began: str = ""      # when it was started, as the kernel counts


@dataclass(frozen=True)
class _Start:
    """The content of a file of `.owners`."""

    owner: Owner = field(default_factory=Owner)
    life: _Life = field(default_factory=_Life)


def _claim(path: Path) -> Owner:
    """Become the next owner, when the last one is known to have ended, or gives no sign of life."""
    number, look = _look(path)
    while number and not _is_over(path, number, look[0]):
        after = _watch(path, (number, look))
        if after == (number, look):
            break
        status, before = _status(after[1][0]), number
        number, look = after
        if number != before or status is None or status.state not in _ENDED:
            raise _occupied(path, number, status)
    life = _life_of(os.getpid())
    restart = os.environ.get("SLURM_RESTART_COUNT", "")
    owner = Owner(f"{number + 1:08x}{secrets.token_hex(12)}", host_name(), os.getpid(), os.environ.get("SLURM_JOB_ID") or None,
                  int(restart) if restart.isdecimal() else 0)
    name = path / OWNERS_NAME / f"{number + 1:08d}"
    try:
        with open(name, "x") as file:
            json.dump({"owner": asdict(owner), "life": asdict(life)}, file)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:  # two have seen the same end, and the other was first
        raise _occupied(path, number + 1, None) from None
    if _holder(name)[0] != owner:
        raise _occupied(path, number + 1, None)
    for old in _numbers(path):
        if old < number + 1 - KEPT_OWNERS:
            with contextlib.suppress(OSError):
                (path / OWNERS_NAME / f"{old:08d}").unlink()
    return owner


def is_owned(run_dir: Path) -> bool:
    """Whether a process trains in a folder. Where that has been silent since this one looks, the answer takes 15 seconds."""
    try:
        seen = _look(run_dir)
    except OSError:  # no process ever has
        return False
    number, (content, _) = seen
    return bool(number) and not _is_over(run_dir, number, content) and _watch(run_dir, seen) != seen


def _watch(path: Path, seen: _Look) -> _Look:
    """What there is to see when that has changed, or an owner that lives would have changed it."""
    watched, pause = 0.0, min(0.1, BEAT_SECONDS / 10)  # a file server that answers nobody is no sign of a silent owner
    while (after := _look(path)) == seen and watched < PATIENCE * BEAT_SECONDS:
        began = time.monotonic()
        time.sleep(pause)
        watched += min(time.monotonic() - began, 2 * pause)
    return after


def _is_over(path: Path, number: int, content: bytes) -> bool:
    """Whether the start of this number has said that it ended, or its process is known to be dead."""
    status = _status(content)
    if status and status.owner.number == number and status.state in _ENDED:
        return True
    owner, life = _holder(path / OWNERS_NAME / f"{number:08d}")
    here, then = _life_of(os.getpid()), _life_of(owner.process)
    # This machine has no such process, or one that began later. A lock that could be had proves less: locks may have no effect
    # here. Nor does a host name, which containers on several machines can share.
    same_machine = bool(life.boot) and (life.boot, life.namespace) == (here.boot, here.namespace)
    return same_machine and life.began != then.began


def _look(path: Path) -> _Look:
    """The number of the newest start, and the content and the time of status.json."""
    content, when = _content(path / STATUS_NAME), 0
    with contextlib.suppress(OSError):
        when = os.stat(path / STATUS_NAME).st_mtime_ns
    status = _status(content)
    return max([status.owner.number if status else 0, *_numbers(path)]), (content, when)


def _numbers(path: Path) -> list[int]:
    return [int(name) for name in os.listdir(path / OWNERS_NAME) if len(name) == 8 and name.isdecimal()]


def _holder(path: Path) -> tuple[Owner, _Life]:
    """What a file of `.owners` says; nothing where it was not written to its end."""
    try:
        start = read_record(_Start, _content(path), MAX_JSON)
    except ValueError:
        start = _Start()
    return start.owner, start.life


def _occupied(path: Path, number: int, status: Status | None) -> InputError:
    owner = _holder(path / OWNERS_NAME / f"{number:08d}")[0]
    if not owner.token and status:
        owner = status.owner
    return InputError(f"another process is training in {path}, {owner.describe()}: wait for it, or choose another run.dir")


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(MAX_JSON + 1)
    except OSError:
        return b""


def _status(content: bytes) -> Status | None:
    try:
        return read_record(Status, content, MAX_JSON)
    except ValueError:
        return None


def _life_of(process: int) -> _Life:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return _Life()
    try:
        state, *values = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _Life(boot, namespace)
    return _Life(boot, namespace, "" if state in "ZX" else values[18])
