"""Makes the inherited environment of a process usable: descriptors, streams, signals, the working folder."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from stylegan_dist.errors import STOP_SIGNALS, InputError

_NOBODY_READS = (errno.EPIPE, errno.EBADF, errno.EIO)
WRITE_SECONDS = 5.0  # that stderr may be full before what it should show is dropped


@contextlib.contextmanager
def usable_environment() -> Iterator[None]:
    """Make the inherited environment usable for the time of a command.

    - A standard stream that was closed is replaced by /dev/null. Otherwise the next file that is opened would take its place,
      and the output of libraries would go there.
    - Output without a reader (`| head`) is dropped, and stderr never blocks.
    - Signals that ask to stop are unblocked. The threads of some launchers leave them blocked.

    Raises:
        InputError: the working folder is gone.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _to_nowhere(descriptor)
    before = sys.stdout, sys.stderr
    out, err = (stream or os.fdopen(number, "w", closefd=False) for number, stream in enumerate(before, 1))
    wrapped = sys.stdout, sys.stderr = _Output(out, None), _Output(err, WRITE_SECONDS)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        try:
            os.getcwd()
        except OSError:
            raise InputError("the folder in which this was started is gone: change to another one") from None
        yield
    finally:
        for stream in wrapped:
            stream.flush()
            try:
                stream._stream.flush()
            except (OSError, ValueError):
                stream.close_for_good()
        sys.stdout, sys.stderr = before


def takes_output(stream: Any, seconds: float = 0.0) -> bool:
    """Whether a line can be written at once, or within so many seconds: a pipe may be full, a terminal stopped (Ctrl-S)."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return bool(poll.poll(seconds * 1000))
    except (OSError, ValueError, AttributeError):  # not a descriptor
        return True


class _Output:
    """A stream to which writing never fails, and waits no longer than `seconds`."""

    def __init__(self, stream: TextIO, seconds: float | None):
        self._stream, self._seconds = stream, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._seconds is not None and not takes_output(self._stream, self._seconds):
            self._seconds = 0.0  # the next line does not wait
            return len(text)
        with self._failures_dropped():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._seconds is None or takes_output(self._stream):
            with self._failures_dropped():
                self._stream.flush()

    @contextlib.contextmanager
    def _failures_dropped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _NOBODY_READS:
                self.close_for_good()
            # Else, on a full disk or a terminal that is busy, later lines may get through.

    def close_for_good(self) -> None:
        """What is buffered must not fail once more when the interpreter ends."""
        with contextlib.suppress(OSError, ValueError):
            _to_nowhere(self._stream.fileno())


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    else:
        os.set_inheritable(descriptor, True)
