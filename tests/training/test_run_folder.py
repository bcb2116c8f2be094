"""The folder of a run: one writer at a time, and only the run that it is of continues in it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tiny_states import INDEX, config_with, new_state, save, step

from stylegan_dist.errors import InputError
from stylegan_dist.training import run_folder
from stylegan_dist.training.run_folder import RunFolder, read_run_config


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.2)


def test_one_writer_at_a_time(tmp_path, impatient):
    first = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match=r"another process is training in .*run: wait for it, or choose another run\.dir"):
        RunFolder(tmp_path / "run")
    first.close()
    RunFolder(tmp_path / "run").close()


def test_the_lock_ends_with_the_process(tmp_path, impatient):
    code = f"import os, stylegan_dist.training.run_folder as r; f = r.RunFolder({str(tmp_path)!r}); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -9
    RunFolder(tmp_path).close()


def test_the_lock_waits_for_processes_that_are_about_to_end(tmp_path):
    """A killed trainer's readers hold its lock until they notice."""
    code = f"import sys, time, stylegan_dist.training.run_folder as r; f = r.RunFolder({str(tmp_path)!r}); " \
           "print('locked', flush=True); time.sleep(0.7)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        RunFolder(tmp_path).close()


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to the run's folder .*; choose another run\.dir"):
        RunFolder(tmp_path / "file")


def test_config_of_a_run(tmp_path):
    config = config_with("run.seed=9").config
    folder = RunFolder(tmp_path)
    folder.save_config(config)
    folder.close()
    assert read_run_config(tmp_path) == config
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(InputError, match=r"is not the folder of a run: it has no config\.yaml"):
        read_run_config(tmp_path / "samples")


@pytest.fixture
def trained(tmp_path):
    """A run's folder with a checkpoint."""
    folder = RunFolder(tmp_path / "run")
    state = new_state()
    step(state, 0)
    save(state, folder.path)
    yield folder
    folder.close()


def test_a_new_run_starts_at_zero(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.starting_point(config_with().config, INDEX.fingerprint) == (0, [])
    folder.close()


def test_the_same_run_continues_silently(trained):
    assert trained.starting_point(config_with().config, INDEX.fingerprint) == (4, [])


@pytest.mark.parametrize("override", [
    "run.seed=1", "data.conditional=false", "data.mirror=true", "data.lanes=7", "data.block=8", "generator.z_dim=4",
    "generator.channel_max=4", "generator.w_avg_decay=0.9", "discriminator.mbstd_group=2", "discriminator.architecture=orig",
    "optim.g.name=AdamW", "optim.d.name=Adamax",
])
def test_another_identity_is_refused(trained, override):
    key, _, value = override.partition("=")
    with pytest.raises(InputError) as caught:
        trained.starting_point(config_with(override).config, INDEX.fingerprint)
    message = str(caught.value)
    assert f"was trained with {key}=" in message
    assert f", not {value.capitalize() if value in ('true', 'false') else value}: " in message
    assert f"or set {key} back" in message


@pytest.mark.parametrize("override", [
    "run.dir=elsewhere", "run.batch_gpu=4", "run.threads=1", "run.device=cpu", "data.shards=moved", "data.workers=7",
    "data.prefetch=1", "monitor.tick_kimg=9", "monitor.wandb=disabled", "checkpoint.keep=9", "checkpoint.every_kimg=1",
    "run.kimg=3.5",
])
def test_incidental_changes_are_silent(trained, override):
    assert trained.starting_point(config_with(override).config, INDEX.fingerprint) == (4, [])


@pytest.mark.parametrize("override", ["loss.r1_gamma=7.5", "optim.g.lr=0.5", "ema.rampup=0.5"])
def test_other_changes_are_reported(trained, override):
    key, _, value = override.partition("=")
    nimg, lines = trained.starting_point(config_with(override).config, INDEX.fingerprint)
    assert nimg == 4
    assert len(lines) == 1
    assert f"changed since the last start: {key} = {value} (was " in lines[0]


def test_other_data_is_refused(trained):
    with pytest.raises(InputError, match=r"was trained on other data than somewhere: choose another run\.dir"):
        trained.starting_point(config_with().config, "another fingerprint")


def test_damage_is_told(trained):
    state = new_state()
    step(state, 0)
    step(state, 1)
    folder = save(state, trained.path)
    os.truncate(folder / "d.safetensors", 10)
    nimg, lines = trained.starting_point(config_with().config, INDEX.fingerprint)
    assert nimg == 4
    assert lines == [f"passing over a damaged checkpoint: {folder / 'd.safetensors'} is damaged"]
