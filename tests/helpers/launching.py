"""Start real training processes in tests, and never leave one behind."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fork_server import Forked

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "launch/train.py"
TIMEOUT = 900  # seconds; against hanging only: the machine may have much else to do

# A network so small that a step takes milliseconds, with everything switched on that has a state or a draw.
RUN = (
    "run.batch=8", "run.device=cpu", "run.threads=1", "data.workers=0", "data.lanes=4", "data.block=8", "data.mirror=true",
    "ema.half_life_kimg=0.05", "monitor.wandb=disabled", "monitor.tick_kimg=0.008", "monitor.samples_kimg=0.08",
    "monitor.pictures_kimg=0", "monitor.grid_columns=4", "monitor.grid_rows=2", "checkpoint.every_kimg=0.08",
)
TINY = (
    *RUN, "generator.z_dim=8", "generator.w_dim=8", "generator.mapping_layers=2", "generator.channel_base=128",
    "generator.channel_max=16", "discriminator.channel_base=128", "discriminator.channel_max=16",
    "discriminator.mapping_layers=1", "discriminator.mbstd_group=2",
    "loss.r1_gamma=1", "loss.r2_gamma=0.5", "loss.penalty_interval=2", "loss.path_length_interval=2",
)
TINY_R3GAN = (
    *RUN, "generator.family=r3gan", "generator.z_dim=8", "generator.class_dim=4", "generator.channel_base=64",
    "generator.channel_max=16", "generator.group_width=8", "generator.blocks=2", "loss.r1_gamma=1", "loss.r2_gamma=0.5",
)
TINY_MLP = (
    *RUN, "generator.family=mlp", "generator.z_dim=8", "generator.class_dim=4", "generator.width=24",
    "discriminator.class_dim=4", "discriminator.width=8", "discriminator.pieces=3",
)
TINY_DCGAN = (
    *RUN, "generator.family=dcgan", "generator.z_dim=8", "generator.class_dim=4", "generator.channel_base=64",
    "generator.channel_max=16", "generator.norm_group=4",
)
TINY_GAT = (
    *RUN, "generator.family=gat", "generator.z_dim=8", "generator.class_dim=4", "generator.patch=2", "generator.depth=4",
    "generator.width=16", "generator.heads=2", "generator.hidden=24", "discriminator.depth=2", "discriminator.class_dim=12",
)
TINY_TEXT = (
    *RUN, "data.mirror=false", "generator.family=text", "generator.z_dim=12", "generator.choices=2", "generator.choice_of=4",
    "generator.class_dim=4", "generator.width=8", "loss.r1_gamma=1", "loss.r2_gamma=0.5",
)
TINY_STYLEGAN3 = (  # and generator.family=stylegan3-t or -r
    *RUN, "generator.z_dim=8", "generator.w_dim=8", "generator.layers=4", "generator.channel_base=64",
    "generator.channel_max=8", "generator.magnitude_half_life_kimg=0.05", "discriminator.channel_base=128",
    "discriminator.channel_max=16", "discriminator.mapping_layers=1", "discriminator.mbstd_group=2", "loss.r1_gamma=1",
    "loss.penalty_interval=2",
)

TINY_STYLEGAN_V = (
    *RUN, "generator.family=stylegan_v", "generator.z_dim=8", "generator.w_dim=8", "generator.channel_base=128",
    "generator.channel_max=16", "generator.motion_z_dim=6", "generator.motion_dim=8", "generator.motion_frequencies=4",
    "generator.motion_distance=4", "generator.motion_kernel=2", "discriminator.channel_base=128",
    "discriminator.channel_max=16", "discriminator.mapping_layers=1", "discriminator.mbstd_group=2", "loss.r1_gamma=1",
    "loss.r2_gamma=0.5", "loss.penalty_interval=2",
)


def train_command(shards: Path, run_dir: Path, *overrides: str, processes: int = 1, config: str = "cpu.yaml",
                  launch_flags: Sequence[str] = (), entry: Path = TRAIN) -> list[str]:
    """`accelerate launch` for several processes, plain Python for one."""
    script = [str(entry), *TINY, f"data.shards={shards}", f"run.dir={run_dir}", *overrides]
    if processes == 1 and config == "cpu.yaml":
        return [sys.executable, *script]
    return [*launcher_command(config, processes), *launch_flags, *script]


def launcher_command(config: str, processes: int) -> list[str]:
    """What the shell makes of `accelerate launch`; `python -m` would look for modules in the current folder."""
    return [sys.executable, str(Path(sysconfig.get_path("scripts"), "accelerate")), "launch",
            "--config_file", str(ROOT / "launch/accelerate" / config), "--num_processes", str(processes)]


def late_entry(folder: Path, rank: int, seconds: float) -> Path:
    """launch/train.py, but one rank sleeps before it begins."""
    script = folder / "train.py"
    script.write_text(f"import os, runpy, time\nif os.environ['RANK'] == '{rank}':\n    time.sleep({seconds})\n"
                      f"runpy.run_path({str(TRAIN)!r}, run_name='__main__')\n")
    return script


@contextlib.contextmanager
def started(command: Sequence[str], forked: bool = False, **environment: str) -> Iterator[subprocess.Popen | Forked]:
    """The process; it and all that it has started are killed at the end.

    Args:
        forked: from one that has imported everything. `environment` must not say what to import, or how.
    """
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    process: subprocess.Popen | Forked
    if forked:
        process = Forked(command, env, str(ROOT))
    else:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    try:
        yield process
    finally:
        kill_all(process)
        process.communicate()


def kill_all(process: subprocess.Popen | Forked) -> None:
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


def run_script(folder: Path, text: str) -> str:
    """Run Python text, which may import our helpers, in a new process. It must succeed. Returns what it has printed."""
    script = folder / "work.py"
    script.write_text(text)
    done = finished([sys.executable, str(script)], PYTHONPATH=f"{ROOT}:{ROOT / 'tests/helpers'}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(shards: Path, run_dir: Path, *overrides: str, processes: int = 1, config: str = "cpu.yaml",
            launcher: bool = False) -> subprocess.CompletedProcess:
    """A training that must succeed, to its end; output as text.

    Args:
        launcher: start it with `accelerate launch`; otherwise its ranks get what the launcher would tell them.
    """
    command = train_command(shards, run_dir, *overrides, processes=processes, config=config)
    if launcher:
        results = [finished(command)]
    else:
        command = [sys.executable, *command[command.index(str(TRAIN)):]]
        told = {} if config == "cpu.yaml" else told_by_launcher(config)
        world = direct_environment(processes) if told or processes > 1 else [{}]
        with contextlib.ExitStack() as stack:
            ranks = [stack.enter_context(started(command, forked=True, **told, **environment)) for environment in world]
            results = [subprocess.CompletedProcess(command, rank.returncode, *said)
                       for rank, said in [(rank, rank.communicate(timeout=TIMEOUT)) for rank in ranks]]
    out, err = ("".join(getattr(result, name) for result in results) for name in ("stdout", "stderr"))
    assert not any(result.returncode for result in results), out + err
    return subprocess.CompletedProcess(command, 0, out, err)


def direct_environment(world_size: int) -> list[dict[str, str]]:
    """What each rank must know to find the others; on machines of one rank each, as far as they can tell."""
    port = free_port()
    return [{"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port), "SLURMD_NODENAME": f"n{rank}"} for rank in range(world_size)]


@functools.cache
def told_by_launcher(config: str) -> dict[str, str]:
    """What `accelerate launch` makes of a configuration file for its ranks."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "print.py")
        script.write_text("import json, os\nprint(json.dumps({name: value for name, value in os.environ.items()\n"
                          "                  if name.startswith('ACCELERATE_')}))")
        command = [*launcher_command(config, 1), str(script)]
        result = finished(command)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])  # DeepSpeed has said something before


def remove_in_use(folder: Path) -> None:
    """Remove a folder into which a run may still write while it is emptied."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(path: Path, process: subprocess.Popen | Forked) -> None:
    """Until the path exists."""
    def appeared() -> bool:
        exists = path.exists()
        assert exists or process.poll() is None, "".join(process.communicate())
        return exists

    wait_until(appeared, str(path))


def wait_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Until the condition holds, however long that takes on a machine with much else to do."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
