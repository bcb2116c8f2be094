"""A process that has imported the trainer once, and forks real runs of launch/train.py: most of what a short run costs.

What a forked run does is what `python launch/train.py` does, except for the imports. Tests of launchers, of other code, or
of what happens while Python starts do not use it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence


class Forked:
    """A run, with those parts of subprocess.Popen that tests use. Its output is text; it is read while the run goes on."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: str):
        self.args = command
        self.returncode: int | None = None
        self._said: dict[str, str] = {}
        control = _server()
        self._answers, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        request = json.dumps({"argv": list(command), "env": dict(env), "cwd": cwd}).encode()
        socket.send_fds(control, [struct.pack("!I", len(request))], [theirs.fileno(), *(write for _, write in pipes)])
        control.sendall(request)
        theirs.close()
        for _, write in pipes:
            os.close(write)
        self.pid = self._answer()
        self._readers = [threading.Thread(target=self._read, args=(name, read), daemon=True)
                         for name, (read, _) in zip(("out", "err"), pipes, strict=True)]
        for reader in self._readers:
            reader.start()

    def _answer(self) -> int:
        return struct.unpack("!i", self._answers.recv(4, socket.MSG_WAITALL))[0]

    def _read(self, name: str, descriptor: int) -> None:
        with open(descriptor) as file:
            self._said[name] = file.read()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._answer()
            self._answers.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All output, when every process that could write some has ended. Raises: subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in self._readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        return self._said["out"], self._said["err"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@functools.cache
def _server() -> socket.socket:
    """The connection to the fork server of this process, which ends with it."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # it takes that as the end
    return ours


def serve(control: socket.socket) -> None:
    """Fork a run for each request, and tell of its end; until the other side is closed."""
    runs: dict[int, socket.socket] = {}
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        if control in select.select([control, wake], [], [])[0]:
            head, descriptors, *_ = socket.recv_fds(control, 4, 3)
            if not head:
                break
            request = json.loads(control.recv(struct.unpack("!I", head)[0], socket.MSG_WAITALL))
            answers = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (control, wake, woken, answers, *runs.values()):
                    other.close()
                return become(request, descriptors[1:])
            for descriptor in descriptors[1:]:
                os.close(descriptor)
            answers.sendall(struct.pack("!i", pid))
            runs[pid] = answers
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)
        while runs and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with runs.pop(ended[0]) as answers, contextlib.suppress(BrokenPipeError):
                answers.sendall(struct.pack("!i", os.waitstatus_to_exitcode(ended[1])))
    for pid in runs:
        os.kill(pid, signal.SIGKILL)


def become(request: dict, descriptors: Sequence[int]) -> None:
    """In the forked process: the run that was asked for, to its end."""
    for target, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    _, script, *arguments = request["argv"]
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401

    import stylegan_dist.data.stream
    import stylegan_dist.training.loop  # noqa: F401

    gc.freeze()  # the runs need not look through all that was imported
    serve(socket.socket(fileno=int(sys.argv[1])))
