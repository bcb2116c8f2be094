"""Has checks carried out by child processes, none of which outlives its time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from stylegan_dist.doctor.child import last_line, own_environment, python_command
from stylegan_dist.doctor.record import Check, Finding, Options, error, not_tried

LIMIT = 120.0        # seconds for all checks together
GRACE = 2.0          # seconds that a child has to end, and to remove its temporary files
TEMPORARY = "temporary folder"  # the check without which no folder is made
_LOOK = 0.1          # seconds between two looks at whether a child is still there
_STDERR_BYTES = 4096  # that are remembered


def examine(groups: Sequence[Sequence[Check]], options: Options, begin: Callable[[str], None], tell: Callable[[Finding], None],
            limit: float = LIMIT) -> list[Finding]:
    """Carry out checks, each group in a child process of its own.

    A check that hangs or ends its process becomes an error, and a new child goes on with the next one.

    Args:
        begin: is told the name of a check that begins.
        tell: is told each finding as soon as it is known.
        limit: seconds for all together. The end of the last child may take `GRACE` more.
    Returns: all findings.
    """
    ends = time.monotonic() + limit
    failed: set[str] = set()
    findings: list[Finding] = []

    def found(check: Check, finding: Finding, fails: bool = False) -> None:
        if fails or finding.status == "error":
            failed.add(check.name)
        findings.append(finding)
        tell(finding)

    with contextlib.ExitStack() as held:
        for number, group in enumerate(groups):
            if number and not options.scratch and TEMPORARY not in failed:
                options = dataclasses.replace(options, scratch=_scratch(held))
            left = list(group)
            while left:
                if time.monotonic() >= ends:
                    for check in left:
                        found(check, _too_late(check, failed, limit))
                    break
                try:
                    child = _Child(left, failed, options)
                except OSError as wrong:
                    found(left[0], error("processes", f"none can be started ({wrong.strerror or wrong})",
                                         "raise ulimit -n, ulimit -u, or the limits of the container"))
                    return findings
                with child:
                    _follow(child, left, ends, begin, found)
    return findings


def _too_late(check: Check, failed: set[str], limit: float) -> Finding:
    if lacking := failed & set(check.needs):
        return not_tried(check.name, lacking)
    return error(check.name, f"not tried: the {limit:g} s for all checks are over",
                 "try again: what was slow to load may be in memory now")


def _scratch(held: contextlib.ExitStack) -> str:
    with contextlib.suppress(OSError):
        return held.enter_context(tempfile.TemporaryDirectory(prefix="stylegan-dist-doctor-", ignore_cleanup_errors=True))
    return ""


def _follow(child: _Child, left: list[Check], ends: float, begin: Callable[[str], None],
            found: Callable[..., None]) -> None:
    """Take what a child finds, and take the checks that it has done from `left`; returns where it is of no more use."""
    usable = True
    while left and usable:
        check, began = left[0], time.monotonic()
        begin(check.name)
        try:
            while (message := child.receive(min(began + check.seconds, ends))) is not None:
                found(check, Finding(**message))
        except TimeoutError:
            usable, seconds = False, time.monotonic() - began
            found(check, Finding(check.name, check.late, f"no answer within {seconds:.0f} s{child.end(ask=True)}",
                                 check.stuck), fails=True)
        except EOFError:
            usable = False
            found(check, error(check.name, f"the process of this check has ended{child.end()}", check.stuck))
        del left[0]


class _Child:
    """A process in a session of its own, which carries out checks."""

    def __init__(self, checks: Sequence[Check], failed: set[str], options: Options):
        told = {"parent": os.getpid(), "options": dataclasses.asdict(options), "failed": sorted(failed),
                "checks": [(check.function.__module__, check.function.__name__, check.name, check.needs) for check in checks]}
        self._incoming, self._said, self._ended = b"", b"", False
        self._selector = selectors.DefaultSelector()
        self._results, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                python_command("stylegan_dist.doctor.child", "carry_out", str(theirs), json.dumps(told)),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[theirs],
                env=own_environment(os.environ), start_new_session=True)
        except OSError:
            os.close(self._results)
            self._selector.close()
            raise
        finally:
            os.close(theirs)
        assert self._process.stderr is not None
        for descriptor in (self._results, self._process.stderr.fileno()):
            self._selector.register(descriptor, selectors.EVENT_READ)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.end(ask=kind is not None)
        self._selector.close()
        os.close(self._results)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def receive(self, until: float) -> Any:
        """The next line of the child.

        Raises:
            TimeoutError: there is none until then, on the clock `time.monotonic`.
            EOFError: the child has ended.
        """
        while b"\n" not in self._incoming:
            if time.monotonic() >= until:
                raise TimeoutError
            is_gone = self._is_gone()  # asked before the pipe, which then holds all that it had to say
            if not self._read(min(_LOOK, max(0.0, until - time.monotonic()))) and is_gone:
                raise EOFError
        line, _, self._incoming = self._incoming.partition(b"\n")
        return json.loads(line)

    def end(self, ask: bool = False) -> str:
        """End the process and all of its group; returns how it ended and its last line on stderr, as the end of a sentence.

        Before, it has `GRACE` seconds to remove its temporary files.

        Args:
            ask: it would not end by itself.
        """
        if not self._ended:
            self._ended = True
            if ask:
                self._signal(signal.SIGTERM)
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline and not self._is_gone():
                self._read(_LOOK)
            self._signal(signal.SIGKILL)  # before it is reaped, while its number is that of the group
            self._process.wait()
            while self._read(0.0):
                pass
            self._code = "" if ask else _describe_code(self._process.returncode)
        last = last_line(self._said.decode(errors="replace"))
        return self._code + (f": {last}" if last else "")

    def _read(self, seconds: float) -> bool:
        """Take what is there; wait that long for something to come. Returns whether something came."""
        came = False
        for key, _ in self._selector.select(seconds):
            block = os.read(key.fd, 1 << 16)
            if not block:
                self._selector.unregister(key.fd)
            elif key.fd == self._results:
                self._incoming += block
            else:
                self._said = (self._said + block)[-_STDERR_BYTES:]
            came = came or bool(block)
        return came

    def _is_gone(self) -> bool:
        """Whether the process has ended. It is not reaped."""
        try:
            return psutil.Process(self._process.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter: macOS, where all have ended
            os.killpg(self._process.pid, number)


def _describe_code(code: int) -> str:
    if code >= 0:
        return f" with exit code {code}"
    with contextlib.suppress(ValueError):
        return f" by {signal.Signals(-code).name}"
    return f" by signal {-code}"

