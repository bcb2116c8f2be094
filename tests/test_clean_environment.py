"""Checks and tests see the project and nothing else: no folders that runs leave behind, no variables of the shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from clean_environment import ensure_home, forget
from launching import ROOT

JUNK = ("data", "runs/demo/launch", "wandb", "torch", "yaml", "pictures", "tests.old")


def test_lint_checks_what_belongs_to_the_project(tmp_path: Path):
    """Where training and packing have been, or another program: neither are its files checked nor do imports move."""
    for name in ("pyproject.toml", "setup.py", "benchmarks", "launch"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    module = tmp_path / "benchmarks/imports.py"
    module.write_text("import data\nimport numpy\nimport torch\nimport yaml\n\nimport stylegan_dist\n\n"
                      "print(data, numpy, stylegan_dist, torch, yaml)\n")
    for name in JUNK:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("import os, sys\n")
    (tmp_path / "numpy.py").write_text("import os, sys\n")
    done = ruff(tmp_path)
    assert done.returncode == 0, done.stdout
    module.write_text("import torch\nimport data\n")
    done = ruff(tmp_path)
    assert "benchmarks/imports.py" in done.stdout


def ruff(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([Path(sysconfig.get_path("scripts"), "ruff"), "check", "--no-cache", "."], cwd=folder,
                          capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_PORT", "WANDB_MODE", "ACCELERATE_USE_CPU",
                                  "SLURM_JOB_NUM_NODES", "http_proxy", "HTTPS_PROXY", "AWS_PROFILE", "LOGLEVEL"])
def test_variables_are_forgotten(name: str):
    assert name not in os.environ  # by conftest.py
    env = {name: "1", "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0"}
    forget(env)
    assert env == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize("home", [None, "", "/dev/null", "/nowhere/at/all"])
def test_a_home_where_there_is_none(home: str | None):
    env = {} if home is None else {"HOME": home}
    ensure_home(env)
    assert os.access(env["HOME"], os.W_OK)
