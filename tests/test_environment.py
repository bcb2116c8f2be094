"""Streams, signals and the folder that a command inherits."""

import os
import signal
import subprocess
import sys

import pytest

COMMAND = """
import os, signal, sys
from stylegan_dist.environment import usable_environment
with usable_environment():
    print("first", flush=True)
    {body}
    print("last", flush=True)
"""


def run(body: str = "pass", redirect: str = "", **options) -> subprocess.CompletedProcess:
    """A command of a shell, whose Python code runs in a usable environment."""
    script = f'exec "$0" -c "$1" {redirect}'
    return subprocess.run(["bash", "-c", script, sys.executable, COMMAND.format(body=body)], capture_output=True, text=True,
                          timeout=600, **options)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_nowhere(closed: str):
    """The next file that is opened does not take its place."""
    result = run("assert os.open(os.devnull, os.O_RDONLY) > 2", closed)
    assert result.returncode == 0
    assert result.stdout in ("first\nlast\n", "")
    assert result.stderr == ""


def test_output_that_nobody_reads_is_dropped():
    result = run("[print(number) for number in range(100_000)]", "| head -n 1")
    assert (result.stdout, result.stderr) == ("first\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_no_error_of_the_command():
    result = run(redirect="> /dev/full")
    assert (result.returncode, result.stderr) == (0, "")


def test_output_goes_on_after_a_failure(tmp_path):
    """A disk that takes nothing for a while."""
    full = "import resource; hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]; " \
           "resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard)); [print('x' * 100, flush=True) for _ in range(200)]; " \
           "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))"
    result = run(full, f"> '{tmp_path / 'out'}'")
    assert (result.returncode, result.stderr) == (0, "")
    out = (tmp_path / "out").read_text()
    assert out.startswith("first\n")
    assert out.endswith("last\n")


def test_blocked_requests_to_stop_arrive():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        result = run("os.kill(os.getpid(), signal.SIGTERM)")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert result.returncode == -signal.SIGTERM


def test_a_folder_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    script = f'cd gone && rmdir ../gone && exec "{sys.executable}" -m stylegan_dist.cli generate runs'
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2
    assert result.stderr == "error: the folder in which this was started is gone: change to another one\n"
