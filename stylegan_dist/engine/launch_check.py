"""Recognise launches that would silently train something else than what was asked for.

Each check answers a trap of `accelerate launch` that ends without an error of its own: fewer processes
than asked for, processes that do not know of each other, settings that are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping

from stylegan_dist.config.knobs import MOST_IMAGES
from stylegan_dist.errors import InputError, LocalInputError
from stylegan_dist.records import shorten

# A process of several needs all of these; MASTER_ADDR and MASTER_PORT are where rank 0 or its launcher listens.
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE",
           "MV2_COMM_WORLD_SIZE")
_FIX = "use one of launch/accelerate/*.yaml: accelerate launch --config_file launch/accelerate/cpu.yaml launch/train.py ..."


def check_environment(env: Mapping[str, str], promised: int | str, device: str = "auto") -> int:
    """Check what the launcher has put into the environment; returns the number of processes it started.

    Args:
        env: the environment variables.
        promised: `run.world_size` of the configuration, a number or "auto".
        device: `run.device`: "auto", "cuda" or "cpu".
    Raises:
        InputError: a launch that cannot be what was meant, with the remedy.
    """
    check_numbers(env)
    _check_settings(env, device)
    _check_place(env)
    return _check_number(env, promised)


def check_numbers(env: Mapping[str, str]) -> None:
    """Raise LocalInputError where a variable that this program, accelerate or torch reads as a number is none."""
    for name in NUMBERS:
        number_of(env, name, 0)


def forget_unreadable_numbers(env: MutableMapping[str, str]) -> None:
    """Remove variables in which accelerate would fail to read a number: what is set to nothing, and OpenMP's lists.

    The number of threads is set by `run.threads`.
    """
    for name in NUMBERS:
        if not env.get(name, "0").strip():
            del env[name]
    if not env.get("OMP_NUM_THREADS", "1").isdecimal():
        del env["OMP_NUM_THREADS"]


def asks_for_cpu(env: Mapping[str, str]) -> bool:
    """Whether accelerate was told to leave the GPUs alone (--cpu, use_cpu: true)."""
    return _is_true(env, "ACCELERATE_USE_CPU")


def _check_settings(env: Mapping[str, str], device: str) -> None:
    """What accelerate would do to the training."""
    for flag, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if _is_true(env, flag):
            raise InputError(f"{name} is not supported: its training is not proven equal to one process; {_FIX}")
    if (precision := env.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise InputError(f"accelerate's mixed_precision={precision} would cast layers that must stay in full precision: set "
                         "mixed_precision: no in its configuration and choose precision.dtype in ours")
    if (backend := env.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise InputError(f"accelerate's dynamo_backend={backend} breaks the double backward of R1: remove it from its "
                         "configuration")
    if device == "cuda" and asks_for_cpu(env):
        raise InputError("run.device=cuda but accelerate was told to use the CPU: remove --cpu, use_cpu: true or "
                         "ACCELERATE_USE_CPU, or set run.device=cpu")


def _check_place(env: Mapping[str, str]) -> None:
    """Each process of several must know which one it is."""
    if "CROSS_SIZE" in env and "LOCAL_SIZE" in env and "TORCHELASTIC_RUN_ID" not in env:
        # Accelerate's default for several machines. It connects to them by itself, so that starting it on each
        # machine makes as many runs.
        raise InputError("DeepSpeed's own launcher started this: set deepspeed_multinode_launcher: standard in the accelerate "
                         "configuration, as in launch/accelerate/multinode-zero2.yaml, and start it on every machine")
    missing = [name for name in PLACE if not env.get(name)]
    several = number_of(env, "WORLD_SIZE", 1) > 1
    if missing and (several or number_of(env, "RANK", 0) > 0):
        raise InputError(f"this is one process of several, but {' and '.join(missing)} are not set: start it with accelerate "
                         "launch; or, one process by one, with srun and RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID "
                         "WORLD_SIZE=$SLURM_NTASKS, set inside of each task")
    if several and not 0 <= number_of(env, "RANK", 0) < number_of(env, "WORLD_SIZE", 1):
        raise LocalInputError(f"RANK={env['RANK']} but WORLD_SIZE={env['WORLD_SIZE']}: ranks are 0 to WORLD_SIZE - 1")
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if not env.get("WORLD_SIZE") and number_of(env, name, 1) > 1:
            raise InputError(f"MPI started this ({name}={env[name]}), which is not supported: start one accelerate launch per "
                             "machine instead; with srun add --mpi=none")


def _check_number(env: Mapping[str, str], promised: int | str) -> int:
    """As many processes as were asked for; returns how many."""
    if number_of(env, "LOCAL_WORLD_SIZE", 1) < 1:
        raise LocalInputError(f"LOCAL_WORLD_SIZE={env['LOCAL_WORLD_SIZE']} must be at least 1: {_FIX}")
    launched = "ACCELERATE_MIXED_PRECISION" in env
    if launched and "MASTER_PORT" in env and "WORLD_SIZE" not in env and promised != 1:
        # `accelerate launch --cpu --num_processes 2` prepares for two processes and starts one.
        raise InputError("accelerate was asked for several processes but started one (as --cpu with --num_processes does); "
                         f"{_FIX}; or set run.world_size=1 if one process is meant")
    world_size = number_of(env, "WORLD_SIZE", 1)
    if not 1 <= world_size <= MOST_IMAGES:
        raise LocalInputError(f"WORLD_SIZE={world_size} must be from 1 to {MOST_IMAGES}: {_FIX}")
    if promised not in ("auto", world_size):
        raise InputError(f"this run was promised {promised} processes (run.world_size) but the launcher started {world_size}: "
                         "correct --num_processes, or run.world_size")
    tasks = number_of(env, "SLURM_STEP_NUM_TASKS", 1)
    if tasks > 1 and world_size == 1 and promised != 1:
        raise InputError(f"srun started {tasks} tasks but each believes that it is alone: start one `accelerate launch` per "
                         "node (--ntasks-per-node=1) with --num_machines, --machine_rank and --main_process_ip; or set "
                         "run.world_size=1 if they are runs of their own")
    # Inside of srun the ranks count the machines, see preflight.py.
    machines = number_of(env, "SLURM_JOB_NUM_NODES", 1) if "SLURM_STEP_NUM_TASKS" not in env else 1
    if launched and machines > 1 and world_size == number_of(env, "LOCAL_WORLD_SIZE", 1) and promised == "auto":
        raise InputError(f"this job has {machines} machines but the launcher uses this one only: start it on all of them with "
                         "srun --ntasks-per-node=1, --num_machines, --machine_rank and --main_process_ip; or set "
                         f"run.world_size={world_size} if one is meant")
    return world_size


def check_joined(expected: int, joined: int) -> None:
    """Raise InputError unless the process group has as many members as the launcher started processes."""
    if joined != expected:
        raise InputError(f"the launcher started {expected} processes but only {joined} found each other: on a machine "
                         f"without GPUs set run.device=cpu; {_FIX}")


def _is_true(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "false").lower() in ("true", "1", "yes", "on", "y", "t")  # as accelerate reads it


def number_of(env: Mapping[str, str], name: str, default: int) -> int:
    """A variable that must be a whole number; `default` if it is not set or empty.

    Raises:
        LocalInputError: it is something else, which the launcher gave to this process alone.
    """
    text = env.get(name, "").strip() or str(default)
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text):
        raise LocalInputError(f"the environment variable {name}={shorten(text)} must be a whole number below 10^9")
    return int(text)
