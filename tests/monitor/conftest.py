"""A tracker in a process of its own, as in life: W&B keeps state per process, and some tests kill a part of it."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from launching import ROOT

PRELUDE = """
import json, os, signal, sys, time, urllib.request
from pathlib import Path

import psutil

from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.monitor.tracker import Segment
from stylegan_dist.monitor.wandb_tracker import WandbTracker

said, warned = [], []
began = time.monotonic()

def tracker(mode="offline", segment=0, shown=None, project="project", name="name", nimg=0, **timeouts):
    for timeout, seconds in timeouts.items():
        setattr(WandbTracker, timeout, seconds)
    config = MonitorConfig(wandb=mode, wandb_project=project, wandb_name=name)
    return WandbTracker(Segment(Path({run_dir!r}), segment, nimg), config, shown or {{}}, said.append, warned.append)

def service():
    # W&B's processes, the service first: it is the child of this one, the others are its children. A process that has
    # not become another program yet must not be stopped: its parent waits for that.
    wait_for(lambda: any(child.name() == "wandb-core" for child in psutil.Process().children()))
    return psutil.Process().children(recursive=True)

def wait_for(condition):
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)

def gone(processes):
    return not psutil.wait_procs(processes, timeout=600)[1]
"""

ENDING = """
print(json.dumps(dict(said=said, warned=warned, seconds=time.monotonic() - began,
                      wandb="wandb" in sys.modules, service=os.environ.get("WANDB_SERVICE"))))
"""


@pytest.fixture
def run(tmp_path):
    """Run a script with a tracker; returns what it said, its time and the whole time of its process."""
    home = tmp_path / "home"
    home.mkdir()

    def run(script, args=(), **environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        clean |= {"HOME": str(home), "NETRC": str(home / "netrc"), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}",
                  **environment}
        code = PRELUDE.format(run_dir=str(tmp_path)) + textwrap.dedent(script) + ENDING
        start = time.monotonic()
        result = subprocess.run([sys.executable, "-c", code, *args], env=clean, timeout=1500, check=False, cwd=home,
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
        return json.loads(result.stdout.splitlines()[-1]) | {"whole": time.monotonic() - start}

    return run
