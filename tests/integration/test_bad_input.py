"""A user's mistake ends in one line that says what to do, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launching import TINY, finished, train_command

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index, load_offsets


@pytest.fixture
def shards(labelled_shards: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(labelled_shards, tmp_path / "shards"))


def train(shards: Path, run_dir: Path, *overrides: str) -> int:
    return main(["train", *TINY, f"data.shards={shards}", f"run.dir={run_dir}", "run.kimg=0.016", *overrides])


def the_error(capsys: pytest.CaptureFixture) -> str:
    """What was printed as an error: exactly one line."""
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def expect(capsys: pytest.CaptureFixture, code: int, *words: str) -> None:
    message = the_error(capsys)
    assert code == 2
    for word in words:
        assert word in message


def test_no_data(tmp_path, capsys):
    expect(capsys, train(tmp_path / "nowhere", tmp_path / "run"), "nowhere", "stylegan-dist pack")
    expect(capsys, main(["train", "run.dir=x"]), "data.shards")


def test_missing_shard(shards, tmp_path, capsys):
    (shards / load_index(shards).shards[1].name).unlink()
    expect(capsys, train(shards, tmp_path / "run"), "shard-00001.tar is missing", "restore")


def test_truncated_shard(shards, tmp_path, capsys):
    path = shards / load_index(shards).shards[0].name
    path.write_bytes(path.read_bytes()[:-512])
    expect(capsys, train(shards, tmp_path / "run"), "truncated", "stylegan-dist verify")


def test_altered_shard_is_found_when_read_and_what_was_trained_is_kept(shards, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert train(shards, run_dir, "run.kimg=0.008") == 0
    index = load_index(shards)
    for shard in index.shards:  # so that the next batch meets one of them
        content = bytearray((shards / shard.name).read_bytes())
        for offset, size, _ in load_offsets(shard):
            content[offset + size // 2:offset + size // 2 + 4] = b"\0\0\0\0"
        (shards / shard.name).write_bytes(content)
    capsys.readouterr()
    expect(capsys, train(shards, run_dir, "run.kimg=0.08"), "is damaged", "SHA-256", "stylegan-dist verify")
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["nimg-00000008"]


def test_damaged_index(shards, tmp_path, capsys):
    (shards / "index.json").write_text("{")
    expect(capsys, train(shards, tmp_path / "run"), "index.json", "damaged")


def test_index_that_leads_elsewhere(shards, tmp_path, capsys):
    content = json.loads((shards / "index.json").read_text())
    content["shards"][0]["name"] = "../../etc/passwd"
    (shards / "index.json").write_text(json.dumps(content))
    expect(capsys, train(shards, tmp_path / "run"), "not a plain file name")


def test_wrong_resolution(labelled_shards, tmp_path, capsys):
    code = main(["pack", str(labelled_shards), str(tmp_path / "out"), "--resolution", "48"])
    expect(capsys, code, "48", "must be one of 8, 16, 32")


def test_labels_missing(tmp_path, labelled_shards, capsys):
    unlabelled = tmp_path / "unlabelled"
    assert main(["pack", str(labelled_shards.parent / "images"), str(unlabelled), "--resolution", "16"]) == 0
    capsys.readouterr()
    expect(capsys, train(unlabelled, tmp_path / "run", "data.conditional=true"), "has no labels", "--labels folders")


def test_batch_not_divisible(shards, tmp_path, capsys):
    expect(capsys, train(shards, tmp_path / "run", "run.batch_gpu=3"), "run.batch_gpu=3", "8 images")


def test_batch_not_divisible_over_ranks(labelled_shards, tmp_path):
    result = finished(train_command(labelled_shards, tmp_path / "run", "run.batch=9", processes=2))
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("error: run.batch=9 cannot be divided over 2 processes")


@pytest.mark.parametrize(("override", "words"), [
    ("run.btach=4", ("run.btach", "run.batch")),
    ("optim.lr=0.1", ("optim.lr", "optim.g.lr")),
    ("run.batch=many", ("run.batch", "whole number")),
    ("loss.adversarial=cosine", ("cosine", "nonsaturating")),
    ("optim.g.name=Adma", ("Adma", "Adam")),
    ("run.kimg=-1", ("run.kimg", "above 0")),
    ("run.device=cuda", ("cuda", "run.device=cpu")),
])
def test_wrong_configuration(override, words, shards, tmp_path, capsys):
    import torch

    if override == "run.device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    expect(capsys, train(shards, tmp_path / "run", override), *words)
    assert not (tmp_path / "run").exists()


def test_unwritable_run_folder(shards, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    expect(capsys, train(shards, tmp_path / "file" / "run"), "cannot write", "run.dir")


def test_run_of_other_data_or_network(shards, labelled_shards, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert train(shards, run_dir) == 0
    def files() -> list[str]:  # without those that number the starts
        return sorted(path.name for path in run_dir.rglob("*") if path.parent.name != ".owners")

    before = files()
    capsys.readouterr()
    expect(capsys, train(shards, run_dir, "generator.w_dim=16", "run.kimg=1"), "generator.w_dim=8, not 16")
    other = tmp_path / "other"
    assert main(["pack", str(labelled_shards.parent / "images"), str(other), "--resolution", "8", "--labels", "folders"]) == 0
    capsys.readouterr()
    expect(capsys, train(other, run_dir, "run.kimg=1"), "other data", "run.dir")
    assert files() == before


def test_missing_and_wrong_preset(tmp_path, capsys):
    expect(capsys, main(["train", str(tmp_path / "none.yaml")]), "none.yaml")
    (tmp_path / "bad.yaml").write_text("run:\n  batch: [\n")
    expect(capsys, main(["train", str(tmp_path / "bad.yaml")]), "bad.yaml", "line")


def test_generate_from_nothing(tmp_path, capsys):
    expect(capsys, main(["generate", str(tmp_path), "--out", str(tmp_path / "out")]), "not the folder of a run")
