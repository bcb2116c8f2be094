"""Recognise launches that would silently train something else than what was asked for.

Each check answers a trap of `accelerate launch` that ends without an error of its own: fewer processes
than asked for, processes that do not know of each other, settings that are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from stylegan_dist.errors import InputError

_FIX = "use one of launch/accelerate/*.yaml: accelerate launch --config_file launch/accelerate/cpu.yaml launch/train.py ..."


def check_environment(env: Mapping[str, str], promised: int | str) -> int:
    """Check what the launcher has put into the environment; returns the number of processes it started.

    Args:
        env: the environment variables.
        promised: `run.world_size` of the configuration, a number or "auto".
    Raises:
        InputError: a launch that cannot be what was meant, with the remedy.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in env
    if env.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1"):
        raise InputError(f"accelerate's DeepSpeed plugin cannot train two networks; {_FIX}")
    for flag, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if env.get(flag, "false").lower() in ("true", "1"):
            raise InputError(f"{name} is not supported: its training is not proven equal to one process; {_FIX}")
    if (precision := env.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise InputError(f"accelerate's mixed_precision={precision} would cast layers that must stay in full precision: set "
                         "mixed_precision: no in its configuration and choose precision.dtype in ours")
    if (backend := env.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise InputError(f"accelerate's dynamo_backend={backend} breaks the double backward of R1: remove it from its "
                         "configuration")
    if launched and "MASTER_PORT" in env and "WORLD_SIZE" not in env and promised != 1:
        # `accelerate launch --cpu --num_processes 2` prepares for two processes and starts one.
        raise InputError("accelerate was asked for several processes but started one (as --cpu with --num_processes does); "
                         f"{_FIX}; or set run.world_size=1 if one process is meant")
    world_size = int(env.get("WORLD_SIZE", "1"))
    if promised not in ("auto", world_size):
        raise InputError(f"this run was promised {promised} processes (run.world_size) but the launcher started {world_size}: "
                         "correct --num_processes, or run.world_size")
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and world_size == 1 and promised != 1:
        raise InputError(f"srun started {tasks} tasks but each believes that it is alone: start one `accelerate launch` per "
                         "node (--ntasks-per-node=1) with --num_machines, --machine_rank and --main_process_ip; or set "
                         "run.world_size=1 if they are runs of their own")
    return world_size


def check_joined(expected: int, joined: int) -> None:
    """Raise InputError unless the process group has as many members as the launcher started processes."""
    if joined != expected:
        raise InputError(f"the launcher started {expected} processes but only {joined} found each other: on a machine "
                         f"without GPUs set run.device=cpu; {_FIX}")
