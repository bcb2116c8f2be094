"""Launches that would silently train something else are refused with the remedy; good ones pass."""

from __future__ import annotations

import pytest

from stylegan_dist.errors import InputError
from stylegan_dist.training.launch_check import check_environment, check_joined

# What `accelerate launch` puts into the environment of a sound launch.
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "true",
              "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "false"}
TWO = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("env", "promised", "world"), [
    ({}, "auto", 1),                                                     # stylegan-dist train
    ({}, 1, 1),
    (ACCELERATE, "auto", 1),                                             # accelerate launch, one process
    (ACCELERATE, 1, 1),
    ({**ACCELERATE, **TWO}, "auto", 2),
    ({**ACCELERATE, **TWO}, 2, 2),
    (TWO, "auto", 2),                                                    # torchrun
    ({**TWO, "WORLD_SIZE": "1"}, "auto", 1),
    ({**ACCELERATE, "MASTER_PORT": "29500"}, 1, 1),                      # one process is what is meant
    ({"MASTER_PORT": "29500"}, "auto", 1),                               # left over from another tool
    ({**TWO, "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "16"}, 16, 16),  # one launcher a node
    ({"SLURM_STEP_NUM_TASKS": "1"}, "auto", 1),
    ({"SLURM_STEP_NUM_TASKS": "4"}, 1, 1),                               # four runs of their own
])
def test_sound_launches(env, promised, world):
    assert check_environment(env, promised) == world


@pytest.mark.parametrize(("env", "promised", "parts"), [
    ({**ACCELERATE, "ACCELERATE_USE_DEEPSPEED": "true"}, "auto", ["DeepSpeed plugin", "--config_file launch/accelerate/"]),
    ({**ACCELERATE, "ACCELERATE_USE_DEEPSPEED": "1"}, "auto", ["DeepSpeed plugin"]),
    ({**ACCELERATE, "ACCELERATE_USE_FSDP": "true"}, "auto", ["FSDP is not supported", "--config_file launch/accelerate/"]),
    ({**ACCELERATE, "ACCELERATE_USE_MEGATRON_LM": "True"}, "auto", ["Megatron-LM", "--config_file launch/accelerate/"]),
    ({**ACCELERATE, "ACCELERATE_MIXED_PRECISION": "bf16"}, "auto",
     ["mixed_precision=bf16", "set mixed_precision: no", "precision.dtype"]),
    ({**ACCELERATE, "ACCELERATE_MIXED_PRECISION": "fp16"}, "auto", ["mixed_precision=fp16"]),
    ({**ACCELERATE, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "auto", ["dynamo_backend=INDUCTOR", "remove it"]),
    ({**ACCELERATE, "MASTER_PORT": "29500"}, "auto",
     ["asked for several processes but started one", "--cpu", "run.world_size=1"]),
    ({**ACCELERATE, "MASTER_PORT": "29500"}, 2, ["asked for several processes but started one"]),
    ({**ACCELERATE, **TWO}, 4, ["promised 4 processes (run.world_size)", "started 2", "correct --num_processes"]),
    ({}, 8, ["promised 8 processes", "started 1", "or run.world_size"]),
    ({**ACCELERATE, **TWO}, 1, ["promised 1 processes", "started 2"]),
    ({"SLURM_STEP_NUM_TASKS": "4"}, "auto",
     ["srun started 4 tasks", "one `accelerate launch` per node", "--ntasks-per-node=1", "run.world_size=1"]),
    ({**ACCELERATE, "SLURM_STEP_NUM_TASKS": "2"}, "auto", ["srun started 2 tasks", "--machine_rank"]),
])
def test_traps(env, promised, parts):
    with pytest.raises(InputError) as caught:
        check_environment(env, promised)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_processes_that_did_not_find_each_other():
    check_joined(1, 1)
    check_joined(4, 4)
    with pytest.raises(InputError, match=r"started 2 processes but only 1 found each other.*run\.device=cpu.*--config_file"):
        check_joined(2, 1)
