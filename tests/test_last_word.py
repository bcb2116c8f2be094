"""What is said after the launcher's traceback: once, when it has ended, and never in its way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
RANK = "from stylegan_dist.last_word import leave_last_word; import sys; leave_last_word(sys.argv[1]); sys.exit(2)"


def launch(folder: Path, *texts: str, name: str = "accelerate", after: str = "") -> subprocess.CompletedProcess:
    """A launcher that starts one rank after the other, with error files as torch gives them, and then complains."""
    script = folder / name
    script.write_text(textwrap.dedent(f"""
        import os, subprocess, sys, time
        for rank, text in enumerate({texts!r}):
            os.makedirs(f"{folder}/attempt/{{rank}}")
            subprocess.run([sys.executable, "-c", {RANK!r}, text],
                           env=os.environ | {{"TORCHELASTIC_ERROR_FILE": f"{folder}/attempt/{{rank}}/error.json"}})
        {after}
        print("launcher: failed", file=sys.stderr)
    """))
    return subprocess.run([sys.executable, str(script), "launch"], capture_output=True, text=True, timeout=600, check=True)


def test_comes_after_the_launcher(tmp_path: Path):
    """Of two ranks the first to speak, which is also the root cause of torch's table."""
    said = launch(tmp_path, "error: größer\nby far", "error: lost rank 0")
    assert said.stderr == "launcher: failed\nerror: größer\nby far\n"
    assert said.stdout == ""
    first, second = (json.loads((tmp_path / f"attempt/{rank}/error.json").read_text())["message"] for rank in (0, 1))
    assert (first["message"], second["message"]) == ("error: größer\nby far", "error: lost rank 0")
    assert int(first["extraInfo"]["timestamp"]) < int(second["extraInfo"]["timestamp"])


def test_torch_reads_the_error_file(tmp_path: Path):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    launch(tmp_path, "error: a", "error: b")
    failures = {rank: ProcessFailure(rank, 1, 2, f"{tmp_path}/attempt/{rank}/error.json") for rank in (1, 0)}
    text = str(ChildFailedError("train.py", failures))
    assert "error: a" in text.partition("Root Cause")[2]
    assert "error: b" in text.partition("Root Cause")[0]


def test_not_below_another_program(tmp_path: Path):
    """Which may live on and have its output read to the end."""
    began = time.monotonic()
    assert launch(tmp_path, "error: a", name="sweep.py").stderr == "launcher: failed\n"
    assert time.monotonic() - began < 30


def test_launcher_that_lives_on(tmp_path: Path):
    """As one that starts its processes again: nothing is said and nothing held longer than the patience."""
    rank = RANK.replace("leave_last_word; ", "leave_last_word; import stylegan_dist.last_word as m; m.PATIENCE = 0; ")
    script, error = tmp_path / "accelerate", f"error: {tmp_path.name}"
    script.write_text(textwrap.dedent(f"""
        import subprocess, sys, time
        from pathlib import Path
        def command(path):
            try:
                return path.read_text(errors="replace")
            except OSError:  # the process has just ended
                return ""
        subprocess.run([sys.executable, "-c", {rank!r}, {error!r}])
        while any({error!r} in command(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
            time.sleep(0.01)
    """))
    done = subprocess.run([sys.executable, str(script), "launch"], capture_output=True, text=True, timeout=600, check=True)
    assert done.stderr == ""


def test_a_python_built_for_old_kernels(tmp_path: Path):
    """As conda's: the table of failures has our line, and nothing else fails."""
    script = tmp_path / "accelerate"
    rank = f"import os; del os.pidfd_open; {RANK}"
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {rank!r}, 'error: a'])\n")
    done = subprocess.run([sys.executable, str(script), "launch"], capture_output=True, text=True, timeout=600, check=True)
    assert done.stderr == ""


def test_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An error file that cannot be written is no second error."""
    from stylegan_dist.last_word import leave_last_word

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone/0/error.json"))
    leave_last_word("error: a")
    assert not (tmp_path / "gone").exists()
