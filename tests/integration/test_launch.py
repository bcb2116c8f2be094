"""Every launch configuration starts what it says, and a launch that would start something else is refused."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import yaml
from batches import locate
from launching import ROOT, TIMEOUT, finished, late_entry, launcher_command, started, train_command, wait_for
from metrics_reader import read
from small_text import pack_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_reader import read_offline_runs

from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.errors import InputError
from stylegan_dist.ops import native
from stylegan_dist.private import user_folder
from stylegan_dist.ranks import World
from stylegan_dist.training.rules import resolve

pytestmark = pytest.mark.slow
SHORT = ("run.kimg=0.016",)


@pytest.mark.full
def test_cpu_and_wandb_offline(labelled_shards: Path, tmp_path: Path):
    """Two processes, two starts; the newest file of W&B alone is the whole run, and TensorBoard shows the same."""
    run_dir = tmp_path / "run"
    for kimg in ("0.016", "0.032"):
        command = train_command(labelled_shards, run_dir, f"run.kimg={kimg}", "monitor.wandb=auto", "monitor.tensorboard=true",
                                processes=2)
        # No key in sight, but the native operators that have been compiled.
        result = finished(command, HOME=str(tmp_path), XDG_CACHE_HOME=str(user_folder("operators").parents[1]))
        assert result.returncode == 0, result.stdout + result.stderr
        assert "2 x CPU" in result.stdout
    runs = read_offline_runs(run_dir)
    assert len(runs) == 2
    assert len({run.run_id for run in runs}) == 1
    newest, records = runs[-1], read(run_dir / "metrics.jsonl")
    assert [record["nimg"] for record in records] == [8, 16, 24, 32]
    assert {"lr/g", "lr/d", "time/rank_step/0", "time/rank_step/1", "time/data_wait", "grad_norm/g"} <= set(records[-1])
    shown = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "histograms": 0}).Reload()
    for name in records[-1].keys() - {"nimg", "kimg", "segment", "time"}:
        expected = {record["nimg"]: pytest.approx(record[name]) for record in records if name in record}
        assert newest.values(name) == expected
        assert {event.step: event.value for event in shown.Scalars(name)} == expected
    for step in (16, 32):
        assert newest.image_path("samples", step).read_bytes() == (run_dir / f"samples/nimg-{step:08d}.png").read_bytes()
        for kind in ("real", "fake"):
            assert newest.values(f"histogram/logits_{kind}")[step]["_type"] == "histogram"
    assert [event.histogram_value.num for event in shown.Histograms("histogram/logits_fake")] == [8, 8]
    assert [event.histogram_value.num for event in shown.Histograms("histogram/logits_real")] == [4, 4]  # those of rank 0
    assert [artifact["aliases"] for artifact in newest.artifacts] == [{"latest", "nimg-32"}]
    assert newest.config["run"]["batch"] == 8
    assert newest.config["data_fingerprint"]


@pytest.mark.full
@pytest.mark.parametrize(("config", "processes"), [("1gpu.yaml", 1), ("8gpu.yaml", 2)])
def test_single_machine(config: str, processes: int, labelled_shards: Path, tmp_path: Path):
    result = finished(train_command(labelled_shards, tmp_path / "run", *SHORT, config=config, processes=processes))
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{processes} x " in result.stdout
    assert re.search(rf"^ +ops +{re.escape(str(native.path('cpu')))}$", result.stdout, re.MULTILINE)


@pytest.mark.full
def test_fewer_processes_than_asked_for(labelled_shards: Path, tmp_path: Path):
    command = train_command(labelled_shards, tmp_path / "run", *SHORT)
    launcher = [*launcher_command("cpu.yaml", 2)[:3], "--cpu", "--num_processes", "2", *command[1:]]
    result = finished(launcher)
    assert result.returncode != 0
    assert "several processes" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_one_process_ends_with_our_line(tmp_path: Path):
    result = finished(train_command(tmp_path / "nowhere", tmp_path / "run", config="1gpu.yaml"))
    assert result.returncode == 1
    first, *_, last = result.stderr.splitlines()
    assert first == last
    assert str(tmp_path / "nowhere") in last


@pytest.mark.full
def test_a_stop_ends_with_how_to_go_on(labelled_shards: Path, tmp_path: Path):
    with started(train_command(labelled_shards, tmp_path / "run", "run.kimg=1000", processes=2)) as process:
        wait_for(tmp_path / "run/samples/reals.png", process)  # the first that is made when stops are awaited
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    last = err.splitlines()[-1]
    assert last in out
    assert "the same command continues" in last


@pytest.mark.full
def test_wrong_world_size(labelled_shards: Path, tmp_path: Path):
    """Said by rank 0 though it is late, and the launcher kills everybody as soon as one has ended."""
    result = finished(train_command(labelled_shards, tmp_path / "run", *SHORT, "run.world_size=4", processes=2,
                                    entry=late_entry(tmp_path, 0, 3)))
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("error: this run was promised 4 processes")]
    assert len(said) == 2  # when it happened, and below the launcher's traceback
    assert result.stderr.splitlines()[-1] == said[0]


@pytest.mark.full
def test_a_damaged_shard_ends_all(labelled_shards: Path, tmp_path: Path):
    """Not one sample is left to stand in for the others: a rank that meets it says so in one line, and all end in seconds."""
    import shutil

    from stylegan_dist.data.index import load_index, load_offsets
    from stylegan_dist.data.order import GlobalOrder

    shards = Path(shutil.copytree(labelled_shards, tmp_path / "shards"))
    index = load_index(shards)
    order = GlobalOrder([shard.samples for shard in index.shards], 0, lanes=4, block=8)
    ((shard, _),) = locate(order, 12, 1)  # in the second step, on rank 1
    content = bytearray((shards / index.shards[shard].name).read_bytes())
    for offset, size, _ in load_offsets(index.shards[shard]).tolist():
        content[offset:offset + size] = bytes(size)
    (shards / index.shards[shard].name).write_bytes(content)
    result = finished(train_command(shards, tmp_path / "run", "run.kimg=0.08", processes=2))
    assert result.returncode != 0
    assert f"{index.shards[shard].name}, sample " in result.stderr
    assert re.search(rf"shard is damaged.* {index.shards[shard].samples} samples", result.stderr)
    assert "stylegan_dist/training" not in result.stderr, "a traceback of ours"
    assert f"error: {shards}" in result.stderr.partition("Root Cause")[2]
    assert f"{index.shards[shard].name}, sample " in result.stderr.splitlines()[-1]


# Plans of large transformers take as long as all others together.
LONG = ("gat-b2-latents", "gat-l2-latents", "gat-xl2-latents")
PRESETS = [pytest.param(path, marks=[pytest.mark.full] * (path.stem in LONG), id=path.stem)
           for path in sorted((ROOT / "launch/presets").glob("*.yaml"))]


@pytest.mark.parametrize("preset", PRESETS)
def test_dry_run_of_every_preset(preset: Path, labelled_shards: Path, clip_shards: Path, tmp_path: Path,
                                 capsys: pytest.CaptureFixture):
    shards = {"text": pack_lines(tmp_path), "video": clip_shards}.get(preset.stem, labelled_shards)
    capsys.readouterr()
    assert main(["train", str(preset), f"data.shards={shards}", "--dry-run", "run.world_size=2"]) == 0
    out = capsys.readouterr().out
    resolved = yaml.safe_load(out)  # the plan below the configuration is a comment
    assert "auto" not in [resolved["loss"]["r1_gamma"], resolved["run"]["batch"], resolved["optim"]["g"]["lr"]]
    assert "# memory" in out


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_published_presets_fit_eight_processes(resolution: int):
    """At the resolution they are made for, which the images of the other tests do not have."""
    shard = Shard("none.tar", 1, 0, "", "none.npy", "")
    index = DatasetIndex(resolution, 3, "png", None, None, [shard])
    for preset in (f"ffhq{resolution}.yaml", "auto.yaml"):
        config = load_config(ROOT / "launch/presets" / preset)
        per_rank = {n: resolve(config, index, World(n, "cuda", bf16=True)).config.run for n in (1, 2, 4, 8)}
        assert all(run.batch // n % run.batch_gpu == 0 for n, run in per_rank.items())
        with pytest.raises(InputError, match="out of 1, 2, 4, 8"):
            resolve(load_config(ROOT / "launch/presets" / f"ffhq{resolution}.yaml"), index, World(16, "cuda", bf16=True))


def test_help_config_lists_every_key(capsys: pytest.CaptureFixture):
    assert main(["train", "--help-config"]) == 0
    out = capsys.readouterr().out
    assert "run.batch_gpu" in out
    assert len(out.splitlines()) > 50


