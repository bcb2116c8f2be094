"""The folder of a run: one writer at a time, and only the run that it is of continues in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys

import pytest
from tiny_states import INDEX, config_with, new_state, save, step

from stylegan_dist import files
from stylegan_dist.config import Config, to_dict
from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.errors import InputError
from stylegan_dist.monitor.monitor import Monitor
from stylegan_dist.monitor.tracker import Segment
from stylegan_dist.training import lease, run_folder
from stylegan_dist.training.run_folder import RunFolder, read_run_config, starting_point


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)


def test_one_writer_at_a_time(tmp_path, impatient):
    first = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match=r"another process.*run.*run\.dir"):
        RunFolder(tmp_path / "run")
    first.close()
    RunFolder(tmp_path / "run").close()


def test_the_lock_ends_with_the_process(tmp_path, impatient):
    code = f"import os, stylegan_dist.training.run_folder as r; f = r.RunFolder({str(tmp_path)!r}); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=600).returncode == -9
    RunFolder(tmp_path).close()


def test_the_lock_waits_for_processes_that_are_about_to_end(tmp_path, monkeypatch):
    """A killed trainer's readers hold its lock until they notice."""
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 600.0)
    code = f"import sys, time, stylegan_dist.training.run_folder as r; f = r.RunFolder({str(tmp_path)!r}); " \
           "print('locked', flush=True); time.sleep(0.7)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        RunFolder(tmp_path).close()


def test_a_deleted_lock_admits_nobody(tmp_path, impatient):
    """Two living processes; the folder itself is locked, too."""
    code = f"import stylegan_dist.training.run_folder as r; f = r.RunFolder({str(tmp_path)!r}); " \
           "print('locked', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        (tmp_path / ".lock").unlink()
        with pytest.raises(InputError, match="another process"):
            RunFolder(tmp_path)
        other.communicate("end\n", timeout=600)
    RunFolder(tmp_path).close()


def test_a_file_system_that_cannot_lock_folders_has_the_file_s_lock(tmp_path, impatient, monkeypatch):
    lock = fcntl.flock

    def network(descriptor, operation):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", network)
    first = RunFolder(tmp_path)
    with pytest.raises(InputError, match="another process"):
        RunFolder(tmp_path)
    first.close()

    def nothing(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", nothing)
    first = RunFolder(tmp_path)
    with pytest.raises(InputError, match="another process"):  # it gives signs of life
        RunFolder(tmp_path)
    first.close()
    RunFolder(tmp_path).close()


@pytest.mark.parametrize("change", ["move", "delete", "replace", "link", "file"])
def test_a_folder_that_is_gone_is_missed(change, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    folder = RunFolder(run)
    folder.check()
    run.rename(moved)
    if change == "delete":
        shutil.rmtree(moved)
    elif change == "replace":
        run.mkdir()
    elif change == "file":
        run.write_text("")
    if change == "link":  # it was moved to another disk, say, and is still there
        run.symlink_to(moved)
        folder.check()
    else:
        with pytest.raises(InputError, match=r"run was (deleted or moved|replaced)"):
            folder.check()
    folder.close()


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    RunFolder(tmp_path).close()
    (tmp_path / "evaluation").mkdir()
    for name in ("config.yaml.tmp", "metrics.jsonl.tmp", "samples/nimg-00000100.png.tmp", "mine.tmp", "samples/mine.png",
                 f".status.json.{1:032x}.tmp", "evaluation/interpolation.gif.tmp", "evaluation/neighbours.png.tmp"):
        (tmp_path / name).write_text("")
    RunFolder(tmp_path).close()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".lock", "00000001", "00000002", "mine.png", "mine.tmp", "neighbours.png.tmp", "status.json"]  # one is an evaluator's


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*run\.dir"):
        RunFolder(tmp_path / "file")


@pytest.mark.parametrize("name", [".lock", "log.txt", "metrics.jsonl"])
def test_a_pipe_that_nobody_reads_is_not_waited_for(name, tmp_path, capsys):
    os.mkfifo(tmp_path / name)
    try:
        with contextlib.closing(RunFolder(tmp_path)):
            monitor = Monitor(Segment(tmp_path), 8, MonitorConfig(wandb="disabled"), {})
            monitor.line("hello")
            monitor.finish(0)
        found = capsys.readouterr()
        text = found.out + found.err
    except InputError as error:
        text = str(error)
    assert str(tmp_path if name == ".lock" else tmp_path / name) in text


def test_config_of_a_run(tmp_path):
    config = config_with("run.seed=9").config
    folder = RunFolder(tmp_path)
    folder.save_config(config)
    folder.close()
    assert read_run_config(tmp_path) == config
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(InputError, match=r"config\.yaml"):
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
    assert starting_point(folder.path, config_with().config, INDEX.fingerprint) == (0, [])
    folder.close()


def test_the_same_run_continues_silently(trained):
    assert starting_point(trained.path, config_with().config, INDEX.fingerprint) == (4, [])


@pytest.mark.parametrize("override", [
    "run.seed=1", "data.conditional=false", "data.mirror=true", "data.lanes=7", "data.block=8", "generator.z_dim=4",
    "generator.channel_max=4", "generator.w_avg_decay=0.9", "discriminator.mbstd_group=2", "discriminator.architecture=orig",
    "optim.g.name=AdamW", "optim.d.name=Adamax",
])
def test_another_identity_is_refused(trained, override):
    key, _, value = override.partition("=")
    with pytest.raises(InputError) as caught:
        starting_point(trained.path, config_with(override).config, INDEX.fingerprint)
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
    assert starting_point(trained.path, config_with(override).config, INDEX.fingerprint) == (4, [])


@pytest.mark.parametrize("override", ["loss.r1_gamma=7.5", "optim.g.lr=0.5", "ema.rampup=0.5"])
def test_other_changes_are_reported(trained, override):
    key, _, value = override.partition("=")
    nimg, lines = starting_point(trained.path, config_with(override).config, INDEX.fingerprint)
    assert nimg == 4
    assert len(lines) == 1
    assert f"changed since the last start: {key} = {value} (was " in lines[0]


def test_other_data_is_refused(trained):
    with pytest.raises(InputError, match=r"other data .*somewhere.*run\.dir"):
        starting_point(trained.path, config_with().config, "another fingerprint")


def test_damage_is_told(trained):
    state = new_state()
    step(state, 0)
    step(state, 1)
    folder = save(state, trained.path)
    os.truncate(folder / "d.safetensors", 10)
    nimg, lines = starting_point(trained.path, config_with().config, INDEX.fingerprint)
    assert nimg == 4
    assert lines == [f"passing over a damaged checkpoint: {folder / 'd.safetensors'} is damaged"]


def test_all_damaged_is_an_error_that_changes_nothing(trained):
    (trained.path / "metrics.jsonl").write_text("records")
    for nimg in (4, 8):
        folder = trained.path / "checkpoints" / f"nimg-{nimg:08d}"
        if nimg == 8:
            shutil.copytree(folder.with_name("nimg-00000004"), folder)
        os.truncate(folder / "g.safetensors", 10)
    before = sorted(trained.path.rglob("*"))
    words = r"nimg-00000008.*g\.safetensors is damaged; and 1 older.*restore .*run\.dir or move"
    with pytest.raises(InputError, match=words) as caught:
        starting_point(trained.path, config_with().config, INDEX.fingerprint)
    assert "\n" not in str(caught.value)
    assert sorted(trained.path.rglob("*")) == before


def test_a_checkpoint_without_its_manifest_is_damage_too(trained):
    (trained.path / "checkpoints" / "nimg-00000004" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json is missing"):
        starting_point(trained.path, config_with().config, INDEX.fingerprint)


def test_the_configuration_of_a_folder_that_was_emptied(tmp_path):
    """New checkpoints need it."""
    folder = RunFolder(tmp_path / "run")
    folder.save_config(Config())
    (tmp_path / "run" / "config.yaml").unlink()
    folder.check()
    assert to_dict(read_run_config(tmp_path / "run")) == to_dict(Config())
    folder.close()


@pytest.mark.parametrize(("number", "needed", "locked"), [
    (errno.EACCES, True, False), (errno.EWOULDBLOCK, False, False), (errno.ENOLCK, False, True), (errno.ENOLCK, True, None),
])
def test_what_file_systems_say_to_a_lock(number, needed, locked, monkeypatch):
    """None: an error."""
    def refuse(*_):
        raise OSError(number, "refused")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    if locked is None:
        with pytest.raises(OSError, match="refused"):
            files.try_lock(0, needed)
    else:
        assert files.try_lock(0, needed) is locked
