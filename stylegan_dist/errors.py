"""Exceptions that end a run on purpose, and the exit codes of every command."""

import signal
from typing import Literal

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the state is saved; run the same command again


# They ask a run to save its state and end: a batch system, Ctrl-C, a lost terminal.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class InputError(Exception):
    """The user's configuration, data or launch is wrong.

    The message is one line that says what is wrong, where, and what to do next. The command line
    prints it without a traceback and exits with `EXIT_BAD_INPUT`.
    """


class LocalInputError(InputError):
    """An `InputError` that one rank has found alone, so that this rank must print it."""


class Diverged(InputError):
    """Training has left what can be trained: values that are not finite, in the state or in too many steps."""


class RankLost(Exception):
    """Another rank has ended or does not answer; this one cannot go on. The state is that of the last checkpoint."""


class Interrupted(Exception):
    """The run was asked to stop, has saved its state, and can be continued.

    Attributes:
        shown: whether the message is on the terminal already.
        then: what the person or the batch system that asked wants of a batch job: to run again, to wait, or to end.
    """

    def __init__(self, message: str = "", shown: bool = False, then: Literal["requeue", "hold", "end"] = "requeue"):
        super().__init__(message)
        self.shown, self.then = shown, then


class LocalInterrupted(Interrupted):
    """An `Interrupted` of one rank alone, in the middle of a step: the run continues from its last checkpoint."""
