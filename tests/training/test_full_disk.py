"""Disks that become full, and get room again: nothing half-written stays, and nothing is lost that can wait."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

HELPERS = Path(__file__).parents[1] / "helpers"

SAVE_UNTIL_FULL = """
    import sys
    from pathlib import Path
    import torch
    sys.path.insert(0, {tests!r})
    {before}
    from tiny_states import save_small
    from stylegan_dist.errors import InputError
    from stylegan_dist.training.checkpoint import newest_whole_checkpoint
    run_dir = Path(sys.argv[1])
    for number in range(1, 20):
        try:
            size = 30_000 if number < 3 else 1_000_000
            save_small(run_dir, number * 100, {{"g": {{"w": torch.ones(size)}}}})
        except InputError as error:
            print("InputError:", error)
            break
    print(newest_whole_checkpoint(run_dir), sorted(path.name for path in (run_dir / "checkpoints").iterdir()))
"""
RESULT = "(200, []) ['nimg-00000100', 'nimg-00000200']"


def can_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs root, to mount a small file system")
def test_checkpoints_on_a_full_disk(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SAVE_UNTIL_FULL.format(tests=str(HELPERS), before="")))
    (tmp_path / "disk").mkdir()
    command = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}/disk && {sys.executable} {script} {tmp_path}/disk"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "InputError:" in done.stdout
    assert RESULT in done.stdout


def test_file_size_limit(tmp_path):
    """As a full disk, where nothing can be mounted."""
    limit = "import resource, signal\n    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" \
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SAVE_UNTIL_FULL.format(tests=str(HELPERS), before=limit)))
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "InputError:" in done.stdout
    assert RESULT in done.stdout


FULL_FOR_A_WHILE = """
    import os, sys
    from pathlib import Path
    import torch
    sys.path.insert(0, {tests!r})
    from metrics_reader import read
    from tiny_states import save_small
    from stylegan_dist.config.schema import MonitorConfig
    from stylegan_dist.errors import InputError
    from stylegan_dist.monitor.images import save_grid
    from stylegan_dist.monitor.monitor import Monitor
    from stylegan_dist.monitor.tracker import Segment

    run_dir = Path(sys.argv[1])
    (run_dir / "samples").mkdir()
    monitor = Monitor(Segment(run_dir), 100, MonitorConfig(wandb="disabled"), {{}})
    save_small(run_dir, 1)
    for nimg in range(1, 301):
        if nimg == 100:
            with open(run_dir / "filler", "wb", buffering=0) as filler:
                try:
                    while True:
                        filler.write(bytes(100))
                except OSError:
                    pass
        if nimg == 200:
            (run_dir / "filler").unlink()
        monitor.tick({{"loss/g_main": 1.0, **{{f"more{{i}}": 0.1 for i in range(50)}}}}, nimg)
        if nimg in (150, 250):
            try:
                save_grid(run_dir / "samples" / f"{{nimg}}.png", torch.rand(64, 3, 16, 16), 8)
            except OSError as error:
                print("no picture:", error)
            try:
                save_small(run_dir, nimg, {{"g": {{"w": torch.ones(9000)}}}})
            except InputError as error:
                print("no checkpoint:", error)
    monitor.finish(0)
    assert [record["nimg"] for record in read(run_dir / "metrics.jsonl")] == list(range(1, 301))
    print("left", sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.name != "log.txt"
                         and path.parent.name != "nimg-00000001" and path.parent.name != "nimg-00000250"))
"""


@pytest.mark.skipif(not can_mount(), reason="needs root, to mount a small file system")
def test_a_disk_that_was_full_for_a_while(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FULL_FOR_A_WHILE.format(tests=str(HELPERS))))
    (tmp_path / "disk").mkdir()
    command = f"mount -t tmpfs -o size=2m tmpfs {tmp_path}/disk && {sys.executable} {script} {tmp_path}/disk"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "no picture:" in done.stdout
    assert "no checkpoint:" in done.stdout
    assert done.stdout.count("WARNING: metrics.jsonl cannot be written") == 1
    assert "metrics.jsonl can be written again" in done.stdout
    left = ["checkpoints", "checkpoints/nimg-00000001", "checkpoints/nimg-00000250", "metrics.jsonl", "samples",
            "samples/250.png"]
    assert done.stdout.splitlines()[-1] == f"left {left}"
