"""What can only be seen on a GPU: the draws of a CPU, training that repeats itself bit for bit, and a host that never waits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from launching import TINY
from metrics_reader import read
from safetensors.torch import load_file

from stylegan_dist import randomness
from stylegan_dist.cli import main
from stylegan_dist.training import loop

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_words_and_normals_are_those_of_the_cpu():
    index = torch.arange(10**9, 10**9 + 64)
    assert torch.equal(randomness.words(1, "z", index.cuda(), 100).cpu(), randomness.words(1, "z", index, 100))
    here, there = (randomness.normal(1, "z", place, (4096,)).cpu() for place in (index, index.cuda()))
    assert (here != there).float().mean() < 1e-5
    torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-7)


def train(shards: Path, run_dir: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Weights and averages after 20 steps."""
    arguments = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "run.kimg=0.16", *overrides]
    assert main(["train", *arguments]) == 0
    folder = run_dir / "checkpoints/nimg-00000160"
    files = {name: load_file(folder / f"{name}.safetensors") for name in ("g", "d", "g_ema")}
    return {f"{name}.{key}": value for name, tensors in files.items() for key, value in tensors.items()}


@pytest.mark.parametrize("path", ["reference", "closed", "fused"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_continued_run_equals_a_straight_one(dtype: str, path: str, labelled_shards: Path, tmp_path: Path):
    settings = ("run.device=cuda", f"precision.dtype={dtype}", f"ops.path={path}")
    straight = train(labelled_shards, tmp_path / "straight", *settings)
    assert main(["train", *TINY, f"data.shards={labelled_shards}", f"run.dir={tmp_path / 'halves'}", "run.kimg=0.08",
                 *settings]) == 0
    halves = train(labelled_shards, tmp_path / "halves", *settings)
    for key, value in straight.items():
        assert torch.equal(value, halves[key]), key


def test_reader_processes_change_nothing(labelled_shards: Path, tmp_path: Path):
    """Their batches are copied to page-locked memory by a thread, also while a phase is recorded."""
    settings = ("run.device=cuda", "run.cuda_graphs=true")
    alone = train(labelled_shards, tmp_path / "alone", *settings)
    read_ahead = train(labelled_shards, tmp_path / "readers", *settings, "data.workers=2", "data.prefetch=1")
    assert "CUDA graphs are off" not in (tmp_path / "readers/log.txt").read_text()
    for key, value in alone.items():
        assert torch.equal(value, read_ahead[key]), key


def test_first_losses_are_those_of_the_cpu(labelled_shards: Path, tmp_path: Path):
    settings = ("precision.dtype=fp32", "precision.tf32=false", "optim.g.eps=1e-2", "optim.d.eps=1e-2")
    train(labelled_shards, tmp_path / "cuda", "run.device=cuda", *settings)
    train(labelled_shards, tmp_path / "cpu", "run.device=cpu", *settings)
    there, here = (read(tmp_path / name / "metrics.jsonl")[:5] for name in ("cuda", "cpu"))
    for a, b in zip(there, here, strict=True):
        assert a["loss/g_main"] == pytest.approx(b["loss/g_main"], rel=1e-4)
        assert a["loss/d_main"] == pytest.approx(b["loss/d_main"], rel=1e-4)


@pytest.mark.parametrize("extra", [(), ("run.batch_gpu=4", "precision.dtype=fp32", "run.recompute=8"),
                                   ("loss.penalty_interval=1", "loss.path_length_interval=1", "optim.g.name=RMSprop",
                                    "optim.g.lr=0.001"), ("ops.path=fused",), ("ops.path=fused", "precision.dtype=fp32")])
def test_recorded_phases_equal_ordinary_ones(extra: tuple[str, ...], labelled_shards: Path, tmp_path: Path):
    """To the last bit, in a straight run and in one that is interrupted, where the second half records anew."""
    settings = ("run.device=cuda", *extra)
    plain = train(labelled_shards, tmp_path / "plain", *settings)
    recorded = train(labelled_shards, tmp_path / "recorded", *settings, "run.cuda_graphs=true")
    assert main(["train", *TINY, f"data.shards={labelled_shards}", f"run.dir={tmp_path / 'halves'}", "run.kimg=0.08",
                 *settings, "run.cuda_graphs=true"]) == 0
    halves = train(labelled_shards, tmp_path / "halves", *settings, "run.cuda_graphs=true")
    for name in ("recorded", "halves"):
        log = (tmp_path / name / "log.txt").read_text()
        assert re.search(r"graphs +on", log)
        assert "CUDA graphs are off" not in log
    for key, value in plain.items():
        assert torch.equal(value, recorded[key]), key
        assert torch.equal(value, halves[key]), key


def test_compiled_networks_train_the_same_run(labelled_shards: Path, tmp_path: Path):
    calm = ("optim.g.eps=1e-2", "optim.d.eps=1e-2", "optim.g.lr=0.001", "optim.d.lr=0.001")
    settings = ("run.device=cuda", "precision.dtype=fp32", "precision.tf32=false", *calm)
    eager = train(labelled_shards, tmp_path / "eager", *settings)
    runs = {name: train(labelled_shards, tmp_path / name, *settings, "run.compile=true", f"run.cuda_graphs={graphs}")
            for name, graphs in (("compiled", "false"), ("again", "false"), ("recorded", "true"))}
    for name in runs:
        log = (tmp_path / name / "log.txt").read_text()
        assert re.search(r"compiled in \d+ s", log)
        assert "CUDA graphs are off" not in log
    for key, value in eager.items():
        torch.testing.assert_close(runs["compiled"][key], value, rtol=1e-4, atol=1e-4, msg=key)
        assert torch.equal(runs["again"][key], runs["compiled"][key]), key
        assert torch.equal(runs["recorded"][key], runs["compiled"][key]), key


@pytest.mark.parametrize("path", ["reference", "closed", "fused"])
@pytest.mark.parametrize("settings", [
    ("precision.dtype=fp32", "run.batch_gpu=4"), ("loss.penalty=approximate", "optim.g.l1=1e-3"), ("run.cuda_graphs=true",),
])
def test_no_step_waits_for_the_gpu(settings: tuple[str, ...], path: str, labelled_shards: Path, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch):
    """PyTorch refuses to wait, once libraries, filters and recordings are there."""
    plain, watched = loop.step, []

    def step(run, batch, stop_requested):
        if run.state.nimg >= 10 * run.config.run.batch:
            torch.cuda.set_sync_debug_mode("error")
            watched.append(run.state.nimg)
        try:
            return plain(run, batch, stop_requested)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "step", step)
    train(labelled_shards, tmp_path / "run", "run.device=cuda", f"ops.path={path}", *settings)
    assert len(watched) == 10
