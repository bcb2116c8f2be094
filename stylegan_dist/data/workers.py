"""Processes that answer requests: each over a pipe of its own, and every one of them can be ended.

There is no lock, no queue and no file in /dev/shm that a killed or stopped process could keep from the others, and
nothing here waits without a bound: what a worker has not sent yet is simply not there yet.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import mmap
import multiprocessing
import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from stylegan_dist.errors import STOP_SIGNALS, InputError

WATCH_SECONDS = 0.1
END_SECONDS = 2.0  # that workers get to end by themselves; and once more after SIGKILL, for the kernel to clear up
_LENGTH = struct.Struct("!Q")
_STATES = {
    "T": "is stopped (SIGSTOP): kill -CONT {pid} lets it go on",
    "t": "is stopped by a debugger",
    "S": "waits for something, such as the network",
    "D": "waits for a disk or a network file system that does not answer",
}
_NOT_STARTED = {
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "raise the system's fs.file-max",
    errno.EAGAIN: "raise ulimit -u, or the pids limit of the container",
    errno.ENOMEM: "raise ulimit -v, or give the job more memory",
}

# Forked workers need not import everything again; elsewhere than on Linux forking is not safe.
context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class WorkerEnded(Exception):
    """A worker is gone: which, and why."""


def shared_bytes(count: int) -> Any:
    """Memory, zero, that this process shares with workers to come. Nothing of it lies in /dev/shm, which may be small.

    Raises:
        OSError: there is not so much.
    """
    return mmap.mmap(-1, max(1, count)) if sys.platform == "linux" else context.RawArray("B", count)


class Worker:
    """A process that calls `function` for each request, one after another, until it is ended or its parent is dead.

    It ignores what asks a run to stop: Slurm and Ctrl-C signal all processes of a run, the parent answers for all.

    Args:
        name: for messages, such as "reader 1 of 2".
        function: inherited by the process, so it may hold what cannot be pickled; answers are pickled.
        fewer: what to set lower where it cannot be started, for messages.
    Attributes:
        pipe: readable when answers have come, or the process has ended; for multiprocessing.connection.wait.
    Raises:
        InputError: it cannot be started, and what to do.
    """

    def __init__(self, name: str, function: Callable[[Any], Any], fewer: str):
        self.name = name
        self._incoming, self._outgoing = bytearray(), bytearray()
        self.pipe: Any = None
        try:
            self.pipe, theirs = context.Pipe()
            with contextlib.closing(theirs), _stop_signals_wait():  # until the worker has said that it ignores them
                self._process = context.Process(target=_serve, args=(theirs, self.pipe, os.getpid(), function),
                                                daemon=True)
                self._process.start()
        except OSError as error:
            if self.pipe is not None:
                self.pipe.close()
            remedy = _NOT_STARTED.get(error.errno or 0, "see what the system says")
            raise InputError(f"cannot start {name}: {error.strerror or error}; {remedy}, or set {fewer}") from None
        self.pid = self._process.pid
        os.set_blocking(self.pipe.fileno(), False)
        _open_workers.add(self)

    def ask(self, request: Any) -> None:
        """Send a request; never waits."""
        content = pickle.dumps(request)
        self._outgoing += _LENGTH.pack(len(content)) + content
        self._send()

    def answers(self, seconds: float = 0.0) -> list[Any]:
        """What has come, in the order of the requests; waits that long for something to come.

        Raises:
            WorkerEnded: the process is gone, and there are no more answers.
            Exception: what the function has raised.
        """
        self._send()
        ended = False
        if not wait([self.pipe], seconds):
            return []
        with contextlib.suppress(BlockingIOError):
            while part := self._read():
                self._incoming += part
            ended = True
        found: list[Any] = []
        while (end := self._end_of_first()) is not None:
            result, failure, trace = pickle.loads(bytes(self._incoming[_LENGTH.size:end]))
            if failure is not None and found:
                break  # raised by the next call
            del self._incoming[:end]
            if failure is not None:
                raise failure from RuntimeError(f"in {self.name}:\n{trace}")
            found.append(result)
        if ended and not found:
            raise WorkerEnded(self.why_ended())
        return found

    def describe(self) -> str:
        """Which process this is and what it is doing, as far as the system knows."""
        who = f"{self.name} (process {self.pid})"
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return f"{who} has not answered"
        return f"{who} {_STATES.get(state, 'is still busy').format(pid=self.pid)}"

    def work_done(self) -> int | None:
        """A number that grows while the process computes: clock ticks of the CPU; None where nobody counts."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])
        except OSError:
            return None

    def why_ended(self) -> str:
        self._process.join(END_SECONDS)  # its pipe closes a moment before
        code = self._process.exitcode
        who = f"{self.name} (process {self.pid})"
        if code == -signal.SIGKILL:
            return f"{who} was killed, probably because the memory was full"
        if code is not None and code < 0:
            return f"{who} was ended by {signal.Signals(-code).name}"
        return f"{who} has ended by itself" + (f" with exit code {code}" if code else "")

    def _read(self) -> bytes:
        try:
            return os.read(self.pipe.fileno(), 1 << 20)
        except ConnectionResetError:  # it was killed with requests unread
            return b""

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._outgoing:
                del self._outgoing[:os.write(self.pipe.fileno(), self._outgoing)]

    def _end_of_first(self) -> int | None:
        """Where the first answer ends, if all of it has come."""
        if len(self._incoming) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._incoming)[0]
        return end if len(self._incoming) >= end else None


def end_workers(workers: Sequence[Worker], seconds: float = END_SECONDS) -> None:
    """End processes: politely at first, and after that many seconds whatever they are doing, stopped or not."""
    for worker in workers:
        worker.pipe.close()  # what they wait for
    deadline = time.monotonic() + seconds
    for patience in (deadline, deadline + END_SECONDS):
        for worker in workers:
            worker._process.join(max(0.0, patience - time.monotonic()))
            if worker._process.is_alive() and patience == deadline:
                worker._process.kill()
    for worker in workers:
        _open_workers.discard(worker)
        # One that not even SIGKILL has ended yet waits inside the kernel; the interpreter's end must not wait with it.
        getattr(multiprocessing.process, "_children", set()).discard(worker._process)


_open_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """They ignore the signal by which an interpreter that ends would end them, and it would wait for ever."""
    end_workers(list(_open_workers), 0.0)


@contextlib.contextmanager
def _stop_signals_wait() -> Iterator[None]:
    """Requests to stop reach this thread after the block; processes that are started in it are born with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, of_parent: Connection, parent: int, function: Callable[[Any], Any]) -> None:
    """In the worker."""
    of_parent.close()  # inherited; while it is open here, this would not see the parent close it
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    for other in list(_open_workers):  # nor would another worker
        other.pipe.close()
        _open_workers.discard(other)
    _end_with_parent(parent)
    descriptor = pipe.fileno()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent wants no more
        while True:
            size, = _LENGTH.unpack(_receive(descriptor, _LENGTH.size))
            request = pickle.loads(_receive(descriptor, size))
            answer = _answer(function, request)
            content = memoryview(_LENGTH.pack(len(answer)) + answer)
            while content:
                content = content[os.write(descriptor, content):]


def _answer(function: Callable[[Any], Any], request: Any) -> bytes:
    """Result, exception, and where that was raised."""
    try:
        return pickle.dumps((function(request), None, ""))
    except Exception as error:
        trace = traceback.format_exc()
        try:
            content = pickle.dumps((None, error, trace))
            pickle.loads(content)
        except Exception:  # an exception that cannot travel
            content = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return content


def _receive(descriptor: int, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = os.read(descriptor, size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def _end_with_parent(parent: int) -> None:
    """End this worker when its parent was killed, also in the middle of a request."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
