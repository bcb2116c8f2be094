"""Start real training processes in tests, and never leave one behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIMEOUT = 150

# A network so small that a step takes milliseconds, with everything switched on that has a state or a draw.
TINY = (
    "run.batch=8", "run.device=cpu", "run.threads=1", "data.workers=0", "data.lanes=4", "data.block=8", "data.mirror=true",
    "generator.z_dim=8", "generator.w_dim=8", "generator.mapping_layers=2", "generator.channel_base=128",
    "generator.channel_max=16", "discriminator.channel_base=128", "discriminator.channel_max=16",
    "discriminator.mapping_layers=1", "discriminator.mbstd_group=2",
    "loss.r1_gamma=1", "loss.r2_gamma=0.5", "loss.penalty_interval=2", "loss.path_length_interval=2",
    "ema.half_life_kimg=0.05", "monitor.wandb=disabled", "monitor.tick_kimg=0.008", "monitor.samples_kimg=0.08",
    "monitor.grid_columns=4", "monitor.grid_rows=2", "checkpoint.every_kimg=0.08",
)


def train_command(shards: Path, run_dir: Path, *overrides: str, processes: int = 1, config: str = "cpu.yaml",
                  launch_flags: Sequence[str] = (), entry: Path = ROOT / "launch/train.py") -> list[str]:
    """`accelerate launch` for several processes, plain Python for one."""
    script = [str(entry), *TINY, f"data.shards={shards}", f"run.dir={run_dir}", *overrides]
    if processes == 1 and config == "cpu.yaml":
        return [sys.executable, *script]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch/accelerate" / config),
            "--num_processes", str(processes), *launch_flags, *script]


def late_entry(folder: Path, rank: int, seconds: float) -> Path:
    """launch/train.py, but one rank sleeps before it begins."""
    script = folder / "train.py"
    script.write_text(f"import os, runpy, time\nif os.environ['RANK'] == '{rank}':\n    time.sleep({seconds})\n"
                      f"runpy.run_path({str(ROOT / 'launch/train.py')!r}, run_name='__main__')\n")
    return script


@contextlib.contextmanager
def started(command: Sequence[str], **environment: str) -> Iterator[subprocess.Popen]:
    """The process; it and all that it has started are killed at the end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "WANDB_"))}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
    )
    try:
        yield process
    finally:
        kill_all(process)
        process.communicate()


def kill_all(process: subprocess.Popen) -> None:
    """kill -9 the process and everything that it has started; workers are in sessions of their own."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """All living children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        new = children.get(waiting.pop(), [])
        found += new
        waiting += new
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def finished(command: Sequence[str], timeout: float = TIMEOUT, **environment: str) -> subprocess.CompletedProcess:
    """Run to the end; output as text."""
    with started(command, **environment) as process:
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def trained(*args: object, **kwargs: object) -> subprocess.CompletedProcess:
    """`finished` for a training that must succeed."""
    result = finished(train_command(*args, **kwargs))
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until the path exists."""
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, "".join(process.communicate())
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
