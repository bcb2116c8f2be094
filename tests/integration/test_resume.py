"""The one idea, end to end: a run does not depend on interruptions or on the number of processes."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from launching import TIMEOUT, alive, descendants, kill_all, started, train_command, trained, wait_for, wait_until
from metrics_reader import read
from saving import assert_equal_tensors

from stylegan_dist.training.checkpoint import newest_whole_checkpoint

pytestmark = pytest.mark.slow
STEPS_20 = "run.kimg=0.16"  # 20 steps of 8 images, a checkpoint after every 10
LAST = "checkpoints/nimg-00000160"
HALF = "checkpoints/nimg-00000080"
# Adam divides a gradient by its own size, so that rounding errors of the smallest ones grow tenfold a
# step. A larger eps keeps different summation orders comparable over 30 steps.
CALM = ("optim.g.eps=1e-2", "optim.d.eps=1e-2", "optim.g.lr=0.001", "optim.d.lr=0.001")


@pytest.fixture(scope="module")
def straight(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps in one process that nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    trained(small_shards, run_dir, STEPS_20)
    return run_dir


def assert_bit_equal(one: Path, other: Path, at: str = LAST) -> None:
    """Weights of G, D, average and optimizers, and the running means."""
    assert_equal_tensors(one / at, other / at)
    a, b = (json.loads((run / at / "state.json").read_text()) for run in (one, other))
    assert a["path_mean"] == b["path_mean"] != 0
    assert a["nimg"] == b["nimg"]


def losses(run_dir: Path) -> list[dict[str, float]]:
    """What each tick measured of the training itself."""
    kept = ("loss/", "logits/", "sign/", "path_length/", "grad_norm/")
    return [{"nimg": record["nimg"]} | {key: value for key, value in record.items() if key.startswith(kept)}
            for record in read(run_dir / "metrics.jsonl")]


@pytest.mark.parametrize(("config", "processes"), [
    pytest.param("cpu.yaml", 1, marks=pytest.mark.full), ("cpu.yaml", 2),
    pytest.param("zero3.yaml", 2, marks=pytest.mark.exhaustive),
])
def test_killed_and_continued_equals_straight(config, processes, small_shards: Path, straight: Path, tmp_path: Path):
    if processes > 1:
        reference = tmp_path / "straight"
        trained(small_shards, reference, STEPS_20, processes=processes, config=config)
    else:
        reference = straight
    run_dir = tmp_path / "killed"
    command = train_command(small_shards, run_dir, "run.kimg=1000", processes=processes, config=config)
    with started(command) as process:
        wait_for(run_dir / HALF / "manifest.json", process)
        kill_all(process)
    for later in (run_dir / "checkpoints").iterdir():  # it may have got further before it died
        if later.name > Path(HALF).name:
            shutil.rmtree(later)
    trained(small_shards, run_dir, STEPS_20, processes=processes, config=config, launcher=True)
    assert_bit_equal(reference, run_dir)
    assert losses(run_dir) == losses(reference)
    assert {record["segment"] for record in read(run_dir / "metrics.jsonl")} == {0, 1}


def test_terminated_run_saves_and_continues(small_shards: Path, tmp_path: Path):
    run_dir = tmp_path / "terminated"
    ticks = "monitor.tick_kimg=0.056"  # the stop falls between two ticks, and must not show in their records
    command = train_command(small_shards, run_dir, "run.kimg=1000", "checkpoint.every_kimg=1000", ticks)
    with started(command, forked=True) as process:
        wait_for(run_dir / "samples/nimg-00000000.png", process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 75, out + err
    (saved,) = (run_dir / "checkpoints").glob("nimg-*")
    nimg = int(saved.name.removeprefix("nimg-"))
    assert f"stopped on request at {nimg / 1000:g} kimg" in out
    kimg = f"run.kimg={(nimg + 40) / 1000}"
    trained(small_shards, run_dir, kimg, ticks)
    trained(small_shards, tmp_path / "straight", kimg, ticks)
    assert_bit_equal(tmp_path / "straight", run_dir, f"checkpoints/nimg-{nimg + 40:08d}")
    assert losses(run_dir) == losses(tmp_path / "straight")


@pytest.mark.full
def test_two_ranks_then_one_then_two_equals_one(small_shards: Path, tmp_path: Path):
    one, changing = tmp_path / "one", tmp_path / "changing"
    trained(small_shards, one, "run.kimg=0.24", *CALM)
    for kimg, processes in (("0.08", 2), ("0.16", 1), ("0.24", 2)):
        trained(small_shards, changing, f"run.kimg={kimg}", *CALM, processes=processes)
    expected, actual = losses(one), losses(changing)
    assert len(expected) == 30
    for a, b in zip(expected, actual, strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5)


@pytest.mark.full
def test_each_engine_continues_the_others(small_shards: Path, tmp_path: Path):
    one, changing = tmp_path / "one", tmp_path / "changing"
    trained(small_shards, one, "run.kimg=0.32", *CALM)
    launches = (("zero3.yaml", 2), ("cpu.yaml", 1), ("zero2-offload.yaml", 1), ("zero1.yaml", 2))
    for i, (config, processes) in enumerate(launches, 1):
        result = trained(small_shards, changing, f"run.kimg={i * 0.08}", *CALM, config=config, processes=processes)
        assert ("DeepSpeed, generator ZeRO-" in result.stdout) == config.startswith("zero")
        assert not result.stderr or "Traceback" not in result.stderr
    expected, actual = losses(one), losses(changing)
    assert len(expected) == 40
    for a, b in zip(expected, actual, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-4)
    assert {record["segment"] for record in read(changing / "metrics.jsonl")} == {0, 1, 2, 3}


@pytest.mark.full
def test_micro_batches_do_not_change_the_run(small_shards: Path, tmp_path: Path):
    whole, split = tmp_path / "whole", tmp_path / "split"
    trained(small_shards, whole, STEPS_20, *CALM, "run.batch_gpu=8")
    trained(small_shards, split, STEPS_20, *CALM, "run.batch_gpu=2")
    for a, b in zip(losses(whole), losses(split), strict=True):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-5)


@pytest.mark.full
def test_reader_processes_do_not_change_the_run(small_shards: Path, straight: Path, tmp_path: Path):
    trained(small_shards, tmp_path / "run", STEPS_20, "data.workers=2")
    assert_bit_equal(straight, tmp_path / "run")


def test_finished_run_is_left_alone(small_shards: Path, straight: Path):
    before = (straight / "metrics.jsonl").read_bytes()
    result = trained(small_shards, straight, STEPS_20)
    assert "finished before" in result.stdout
    assert (straight / "metrics.jsonl").read_bytes() == before


def test_damaged_checkpoint_is_passed_over(small_shards: Path, straight: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    weights = run_dir / LAST / "g.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    result = trained(small_shards, run_dir, STEPS_20)
    assert "passing over a damaged checkpoint" in result.stdout + result.stderr
    assert_bit_equal(straight, run_dir)


@pytest.mark.full
@pytest.mark.parametrize(("config", "processes"), [("cpu.yaml", 2), ("1gpu.yaml", 1)])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_their_launcher(config, processes, how, small_shards: Path, tmp_path: Path):
    run_dir = tmp_path / "orphans"
    with started(train_command(small_shards, run_dir, "run.kimg=1000", processes=processes, config=config)) as launcher:
        wait_for(run_dir / HALF / "manifest.json", launcher)
        workers = [pid for pid in descendants(launcher.pid) if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(workers) == processes
        launcher.send_signal(how)
        launcher.communicate(timeout=TIMEOUT)  # returns when the last worker has closed its end of the pipe
        wait_until(lambda: not any(map(alive, workers)))  # the kernel closes it a moment before
    assert newest_whole_checkpoint(run_dir)[0] > 80  # they saved before they went


def test_another_batch_continues_with_the_next_image(small_shards: Path, straight: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    result = trained(small_shards, run_dir, "run.kimg=0.2", "run.batch=20")
    assert "changed since the last start: run.batch = 20 (was 8)" in result.stdout
    assert [record["nimg"] for record in read(run_dir / "metrics.jsonl")][-3:] == [160, 180, 200]
