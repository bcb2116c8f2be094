"""Launches that would silently train something else are refused with the remedy; good ones pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from stylegan_dist.engine.launch_check import check_environment, check_joined, forget_unreadable_numbers
from stylegan_dist.engine.rendezvous import hash_code, judge, name_ranks, patience
from stylegan_dist.errors import InputError

# What `accelerate launch` puts into the environment of a sound launch.
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "true",
              "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "false"}
TWO = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


# The same of DeepSpeed's launcher, and of accelerate's own for DeepSpeed.
PDSH = {**ACCELERATE, **TWO, "ACCELERATE_USE_DEEPSPEED": "true", "CROSS_RANK": "0", "CROSS_SIZE": "2", "LOCAL_SIZE": "1"}
STANDARD = {**ACCELERATE, **TWO, "ACCELERATE_USE_DEEPSPEED": "true", "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}


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
    ({"WORLD_SIZE": "", "RANK": ""}, "auto", 1),
    ({**TWO, "PMI_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"}, "auto", 2),  # MPI or srun started launchers
    ({"PMI_SIZE": "1"}, "auto", 1),
    (STANDARD, "auto", 2),                                               # DeepSpeed, started by accelerate's agent
    ({**ACCELERATE, **TWO, "LOCAL_WORLD_SIZE": "2", "SLURM_JOB_NUM_NODES": "1"}, "auto", 2),
    ({**ACCELERATE, **TWO, "LOCAL_WORLD_SIZE": "1", "SLURM_JOB_NUM_NODES": "2"}, "auto", 2),  # by ssh from the first
    ({**ACCELERATE, **TWO, "LOCAL_WORLD_SIZE": "2", "SLURM_JOB_NUM_NODES": "2"}, 2, 2),  # one machine of the job is meant
    ({"SLURM_JOB_NUM_NODES": "2"}, "auto", 1),                           # a try by hand within a job
])
def test_sound_launches(env, promised, world):
    assert check_environment(env, promised) == world


@pytest.mark.parametrize(("env", "promised", "parts"), [
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
    (PDSH, "auto", ["DeepSpeed's own launcher", "deepspeed_multinode_launcher: standard", "multinode-zero2.yaml"]),
    ({"WORLD_SIZE": "2"}, "auto", ["RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT are not set", "RANK=$SLURM_PROCID"]),
    ({**TWO, "LOCAL_RANK": ""}, "auto", ["one process of several, but LOCAL_RANK", "accelerate launch"]),
    ({"RANK": "1"}, "auto", ["LOCAL_RANK and WORLD_SIZE and MASTER_ADDR"]),
    ({**TWO, "RANK": "2"}, "auto", ["RANK=2 but WORLD_SIZE=2"]),
    ({**TWO, "LOCAL_RANK": "9" * 5000}, "auto", ["LOCAL_RANK='999", "must be a whole number"]),
    ({**TWO, "MASTER_PORT": "x"}, "auto", ["MASTER_PORT='x' must be a whole number"]),
    ({**TWO, "LOCAL_WORLD_SIZE": "0"}, "auto", ["LOCAL_WORLD_SIZE=0 must be"]),
    ({**TWO, "WORLD_SIZE": "2000000"}, "auto", ["WORLD_SIZE=2000000 must be from 1 to"]),
    ({**TWO, "WORLD_SIZE": "$N"}, "auto", ["WORLD_SIZE='$N' must be a whole number"]),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "auto", ["MPI started this (OMPI_COMM_WORLD_SIZE=2)", "accelerate launch per machine"]),
    ({"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "4"}, 1, ["MPI started this", "--mpi=none"]),
    ({**ACCELERATE, **TWO, "LOCAL_WORLD_SIZE": "2", "SLURM_JOB_NUM_NODES": "2"}, "auto",
     ["this job has 2 machines but the launcher uses this one only", "srun --ntasks-per-node=1", "run.world_size=2"]),
    ({**ACCELERATE, "SLURM_JOB_NUM_NODES": "2"}, "auto", ["this job has 2 machines", "run.world_size=1"]),
])
def test_traps(env, promised, parts):
    with pytest.raises(InputError) as caught:
        check_environment(env, promised)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_device_and_accelerate_must_mean_the_same():
    for setting in ("true", "True", "1", "yes"):
        with pytest.raises(InputError, match=r"run\.device=cuda.*CPU.*--cpu"):
            check_environment({**ACCELERATE, "ACCELERATE_USE_CPU": setting}, "auto", "cuda")
    assert check_environment({**ACCELERATE, "ACCELERATE_USE_CPU": "false"}, "auto", "cuda") == 1
    assert check_environment(ACCELERATE, "auto", "cpu") == 1


def test_processes_that_did_not_find_each_other():
    check_joined(1, 1)
    check_joined(4, 4)
    with pytest.raises(InputError, match=r"2 processes.* 1 found.*run\.device=cpu.*--config_file"):
        check_joined(2, 1)


def a_rank(gpu: str | None = None, machines: int = 1, **same: str) -> dict:
    """What a rank says of itself before the process group exists."""
    same = {name.replace("_", " "): value for name, value in same.items()}
    return {"same": {"torch": "2.13.0", "device": "cuda" if gpu else "cpu", **same}, "gpu": gpu, "machines": machines}


@pytest.mark.parametrize(("registrations", "hosts"), [
    ([a_rank(), a_rank()], ["a", "a"]),
    ([a_rank(), a_rank()], ["a", "b"]),
    ([a_rank("GPU-1"), a_rank("GPU-2")], ["a", "a"]),
    ([a_rank(machines=2), a_rank(machines=2)], ["a", "b"]),
    ([a_rank(machines=1), a_rank(machines=1)], ["a", "b"]),  # several steps, or ssh
])
def test_sound_worlds(registrations: list, hosts: list):
    assert judge(registrations, hosts) is None


@pytest.mark.parametrize(("registrations", "hosts", "parts"), [
    ([a_rank(), a_rank(torch="2.12.1"), a_rank()], ["a", "b", "b"],
     ["differ in torch: 2.13.0 on ranks 0, 2 (a, b), 2.12.1 on rank 1 (b)", "same environment"]),
    ([a_rank(), a_rank(deepspeed="0.19.8")], ["a", "b"], ["deepspeed: not there on rank 0 (a), 0.19.8 on rank 1 (b)"]),
    ([a_rank(number_of_processes="2"), a_rank(number_of_processes="3")], ["a", "b"], ["2 on rank 0 (a), 3 on rank 1 (b)"]),
    ([a_rank("GPU-1"), a_rank()], ["a", "b"], ["differ in device: cuda on rank 0 (a), cpu on rank 1 (b)", "nvidia-smi"]),
    ([a_rank("GPU-1"), a_rank("GPU-2"), a_rank("GPU-1")], ["a", "a", "a"],
     ["ranks 0, 2 (a) use the same GPU, GPU-1", "LOCAL_RANK"]),
    ([a_rank(machines=2), a_rank(machines=2)], ["a", "a"], ["on 2 machines, but ranks 0-1 (a) are all", "--num_machines"]),
    ([a_rank(), {"error": "no GPU"}, {"error": "no GPU"}], ["a", "b", "b"], ["ranks 1-2 (b): no GPU"]),
])
def test_worlds_that_are_no_run(registrations: list, hosts: list, parts: list):
    message = judge(registrations, hosts)
    assert message is not None
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_an_error_of_all_ranks_is_told_as_it_is():
    assert judge([{"error": "no GPU"}] * 2, ["a", "b"]) == "no GPU"


def test_names_of_ranks_stay_short():
    assert name_ranks([3]) == "rank 3"
    assert name_ranks([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
    hosts = [f"n{rank // 8}" for rank in range(512)]
    assert name_ranks(range(512), hosts) == "ranks 0-511 (n0, n1, n2, n3, n4, n5, n6, n7, ...)"


def test_code_is_names_and_contents(tmp_path: Path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part/a.py").write_text("a = 1\n")
    first = hash_code(tmp_path)
    (tmp_path / "notes.txt").write_text("not code")
    (tmp_path / "part/.#a.py").symlink_to("an editor's lock")
    assert hash_code(tmp_path) == first
    (tmp_path / "part/a.py").rename(tmp_path / "a.py")
    assert hash_code(tmp_path) != first
    (tmp_path / "a.py").rename(tmp_path / "part/a.py")
    assert hash_code(tmp_path) == first
    (tmp_path / "part/a.py").write_text("a = 2\n")
    assert hash_code(tmp_path) != first


def test_patience_is_a_minute_unless_asked_otherwise():
    assert [patience(timeout) for timeout in (5, 60, 600, 1800)] == [5, 60, 60, 180]


def test_numbers_that_accelerate_could_not_read_are_forgotten():
    env = {"WORLD_SIZE": "", "RANK": " ", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "4,2", "PMI_SIZE": ""}
    forget_unreadable_numbers(env)
    assert env == {"LOCAL_RANK": "0"}
    forget_unreadable_numbers(env := {"OMP_NUM_THREADS": "4"})
    assert env == {"OMP_NUM_THREADS": "4"}
