"""Real W&B runs, offline, read back from their files; and W&B broken in the ways that clusters break it.

Every run is a process of its own, as in life: W&B keeps state per process, and some of these runs kill a part of it.
"""

import math
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image
from wandb_reader import read_offline_runs
from wandb_server import KEY

from stylegan_dist.kinds.audio import write_wav
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.redact import redact


def test_offline_run_reads_back(run, tmp_path):
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    save_grid(tmp_path / "samples.png", pixels, 2)
    write_wav(tmp_path / "samples.wav", np.linspace(-0.5, 0.5, 300), 8000)
    out = run(f"""
        w = tracker(shown={{"optim": {{"lr": 0.002}}, "data": {{"api_key": "hush"}}}}, segment=3)
        w.log({{"loss/g_main": 1.25, "loss/d_main": float("nan")}}, 4000)
        w.image("samples", {str(tmp_path / "samples.png")!r}, 4000)
        w.image("samples_sounds", {str(tmp_path / "samples.wav")!r}, 4000)
        w.log({{"loss/g_main": 1.5}}, 8000)
        w.alert("diverged", "the loss is NaN")
        w.finish(0)
        w.log({{"loss/g_main": 9.0}}, 12000)
        w.finish(0)
    """)
    assert out["warned"] == []
    assert len(out["said"]) == 1
    assert "wandb sync" in out["said"][0]

    (segment,) = read_offline_runs(tmp_path)
    assert segment.run_id == (tmp_path / "wandb_id").read_text().strip()
    assert (segment.project, segment.name) == ("project", "name")
    assert segment.values("loss/g_main") == {4000: 1.25, 8000: 1.5}
    assert math.isnan(float(segment.values("loss/d_main")[4000]))
    assert segment.values("nimg") == {4000: 4000, 8000: 8000}
    assert set(segment.values("run/segment").values()) == {3}
    assert segment.metrics["*"] == "nimg"
    assert segment.alerts == [("diverged", "the loss is NaN")]
    assert (segment.exit_code, segment.preempting) == (0, False)
    assert segment.config["optim"] == {"lr": 0.002}
    assert segment.config["data"] == {"api_key": "***"}
    ours, theirs = (np.array(Image.open(p)) for p in (tmp_path / "samples.png", segment.image_path("samples", 4000)))
    assert np.array_equal(ours, theirs)
    assert segment.values("samples_sounds")[4000]["_type"] == "audio-file"
    assert segment.image_path("samples_sounds", 4000).read_bytes() == (tmp_path / "samples.wav").read_bytes()


@pytest.mark.full
def test_restart_continues_the_same_run(run, tmp_path):
    for segment, steps in enumerate([(4000, 8000), (6000, 10000)]):
        time.sleep(1.1 * segment)  # W&B names folders by the second
        run(f"""
            w = tracker(segment={segment}, shown={{"segment_of_test": {segment}}})
            for nimg in {steps}:
                w.log({{"loss/g_main": nimg / 1000}}, nimg)
            w.finish({75 if segment == 0 else 0})
        """)
    first, second = read_offline_runs(tmp_path)
    assert first.run_id == second.run_id
    assert (first.preempting, first.exit_code) == (True, 75)
    assert (second.preempting, second.exit_code) == (False, 0)
    assert second.values("loss/g_main") == {6000: 6.0, 10000: 10.0}
    assert set(second.values("run/segment").values()) == {1}


def test_disabled_does_not_even_import_wandb(run, tmp_path):
    out = run("""
        w = tracker("disabled")
        w.log({"loss/g_main": 1.0}, 1)
        w.finish(0)
    """)
    assert not out["wandb"]
    assert out["said"] == out["warned"] == []
    assert not (tmp_path / "wandb").exists()
    assert not (tmp_path / "wandb_id").exists()


@pytest.mark.full
def test_unreachable_server_becomes_an_offline_record(run, tmp_path):
    out = run("""
        w = tracker("online", init_timeout=10.0, finish_timeout=10.0)
        for nimg in range(1000, 4000, 1000):
            w.log({"loss/g_main": 1.0}, nimg)
        in_the_way = time.monotonic() - began
        assert in_the_way < 9.0, in_the_way  # less than the time-out
        w.finish(0)
    """, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert out["seconds"] < 600
    (warning,) = out["warned"]
    assert "out of reach" in warning
    assert "wandb sync" in warning
    (segment,) = read_offline_runs(tmp_path)
    assert sorted(segment.values("loss/g_main")) == [1000, 2000, 3000]


@pytest.mark.full
def test_secrets_are_in_no_file(run, tmp_path):
    run("""
        w = tracker("online", init_timeout=1.0, shown={"note": "key " + os.environ["WANDB_API_KEY"]})
        w.log({"loss/g_main": 1.0}, 1)
        w.finish(0)
    """, args=[f"data.shards=https://user:{KEY}@host/"], WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY=KEY)
    assert files_with(tmp_path / "wandb", KEY) == []


@pytest.mark.full
@pytest.mark.parametrize(("args", "variables"), [
    (["--api-key=hush-hush-hush"], {}),
    (["--password", "x", "https://hush-hush-hush@host/"], {}),
    ([], {"SLURM_JOB_ID": "1", "SLURM_JWT": "hush-hush-hush"}),
    ([], dict.fromkeys(("WANDB_NOTES", "WANDB_TAGS", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_NAME"), "of hush-hush-hush")),
    ([], {"WANDB_PROJECT": "hush-hush-hush", "WANDB_ENTITY": "hush-hush-hush"}),
    ([], {"WANDB_RUN_ID": "hush-hush-hush"}),
])
def test_secrets_of_command_and_environment_are_in_no_file(run, tmp_path, args, variables):
    subprocess.run("git init -q; git remote add origin https://hush-hush-hush@host/x.git; git -c user.name=x -c user.email=x@y "
                   "commit -q --allow-empty -m x", shell=True, cwd=tmp_path / "home", check=True)
    out = run("""
        w = tracker(project="", name="")
        wait_for(lambda: w._run)
        time.sleep(0.5)  # what the service finds out about the process comes a moment later
        w.finish(0)
    """, args=args, SOME_TOKEN="hush-hush-hush", **variables)
    assert out["warned"] == []
    assert files_with(tmp_path / "wandb", "hush-hush") == []


def files_with(folder, text):
    """The files that hold a text, in a folder in which there is a record of W&B."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    return [path for path in files if text.encode() in path.read_bytes() or text in str(path)]


@pytest.mark.full
def test_unwritable_folder_is_one_warning(run, tmp_path):
    (tmp_path / "wandb").write_text("a file where W&B wants a folder")
    out = run("""
        w = tracker()
        for nimg in range(10):
            w.log({"loss/g_main": 1.0}, nimg)
        w.finish(0)
    """)
    assert out["seconds"] < 600
    (warning,) = out["warned"]
    assert "W&B is off" in warning


@pytest.mark.full
def test_one_failure_is_one_warning_and_logging_goes_on(run, tmp_path):
    out = run("""
        w = tracker()
        w.log({"loss/g_main": 1.0}, 1)
        for name in ("a", "b"):
            w.image(name, "no such file.png", 1)
        w.log({"loss/g_main": 2.0}, 2)
        w.image("c", "no such file.png", 2)
        w.finish(0)
    """)
    assert len(out["warned"]) == 1
    assert read_offline_runs(tmp_path)[0].values("loss/g_main") == {1: 1.0, 2: 2.0}


def test_secrets_are_masked(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "tok-1234567890")
    config = {
        "wandb": {"api_key": "k", "project": "p"},
        "HF_TOKEN": "x",
        "passwords": ["a", "b"],
        "tokenizer": "bpe", "num_tokens": 77, "secret": None,
        "shards": ["s3://id:pw@bucket/x", "https://h/x?X-Amz-Signature=abc&part=1&sig=q", "gs://bucket/x"],
        "note": "uses tok-1234567890 here",
    }
    assert redact(config) == {
        "wandb": {"api_key": "***", "project": "p"},
        "HF_TOKEN": "***",
        "passwords": ["***", "***"],
        "tokenizer": "bpe", "num_tokens": 77, "secret": None,
        "shards": ["s3://***@bucket/x", "https://h/x?X-Amz-Signature=***&part=1&sig=***", "gs://bucket/x"],
        "note": "uses *** here",
    }
    assert config["wandb"]["api_key"] == "k"
