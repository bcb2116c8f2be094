"""What the shell of a developer, a batch job or a launcher has set must not change what tests see."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

PREFIXES = ("ACCELERATE_", "AWS_", "FSDP_", "GROUP_", "MEGATRON_LM_", "MV2_", "OMPI_", "PMIX_", "PMI_", "PARALLELISM_CONFIG_",
            "ROLE_", "SLURMD_", "SLURM_", "TORCHELASTIC_", "TORCHINDUCTOR_", "WANDB_")
NAMES = {"COLUMNS", "CROSS_RANK", "CROSS_SIZE", "DS_ACCELERATOR", "FORCE_COLOR", "LINES", "LOCAL_RANK", "LOCAL_SIZE",
         "LOCAL_WORLD_SIZE", "LOGLEVEL", "MASTER_ADDR", "MASTER_PORT", "NETRC", "NODE_RANK", "PYTHONWARNINGS", "RANK",
         "TORCH_LOGS", "WORLD_SIZE"}


def forget(env: MutableMapping[str, str]) -> None:
    """Remove variables that say how something is launched, logged, reached or shown."""
    for name in list(env):
        if name.startswith(PREFIXES) or name in NAMES or name.lower().endswith("_proxy"):
            del env[name]


def ensure_home(env: MutableMapping[str, str]) -> None:
    """A folder for as long as this process lives, if there is no home or nothing can be written there."""
    home = env.get("HOME")
    if home and os.access(home, os.W_OK | os.X_OK):
        return
    env["HOME"] = tempfile.mkdtemp(prefix="stylegan-dist-tests-")
    atexit.register(shutil.rmtree, Path(env["HOME"]), ignore_errors=True)
