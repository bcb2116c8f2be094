"""Exported generators: equal to the run's, by whatever runs them, and written whole or not at all."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launching import TINY_GAT
from PIL import Image
from untrained_run import TINY, make_run

from stylegan_dist.cli import main
from stylegan_dist.errors import InputError
from stylegan_dist.export import from_pretrained, graphs
from stylegan_dist.export.card import CardOptions, model_card
from stylegan_dist.export.folder import FORMATS
from stylegan_dist.export.pretrained import Description
from stylegan_dist.kinds.array import Array
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.kinds.film import FilmForm
from stylegan_dist.networks.generator import Sampling, draw_samples
from stylegan_dist.records import read_record
from stylegan_dist.scores_file import NAME
from stylegan_dist.training.snapshot import load_generator

SMALL = [*TINY, "generator.z_dim=8", "generator.w_dim=8", "generator.mapping_layers=2", "generator.channel_base=128",
         "generator.channel_max=16"]
R3GAN = ["data.shards=somewhere", "generator.family=r3gan", "generator.z_dim=8", "generator.class_dim=4",
         "generator.channel_base=64", "generator.channel_max=16", "generator.group_width=8", "generator.blocks=1",
         "discriminator.blocks=1"]
DCGAN = ["data.shards=somewhere", "generator.family=dcgan", "generator.z_dim=8", "generator.channel_base=64",
         "generator.channel_max=16", "generator.norm_group=4"]
GAT = [*TINY_GAT, "data.shards=somewhere"]

# What a user without this package runs; inputs and samples are tensors in a file.
STRANGER = """
import sys
sys.modules["stylegan_dist"] = None  # cannot be imported
import torch
folder, given = sys.argv[1:]
cases = torch.load(given, weights_only=True)
program = torch.export.load(folder + "/generator.pt2").module()
import onnxruntime
session = onnxruntime.InferenceSession(folder + "/generator.onnx")
for case in cases:
    wanted = case.pop("samples")
    by_torch = program(*case.values())
    by_onnx = torch.from_numpy(session.run(None, {name: value.numpy() for name, value in case.items()})[0])
    for found in by_torch, by_onnx:
        assert found.shape == wanted.shape, (found.shape, wanted.shape)
        assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
assert not any(name.startswith("stylegan_dist.") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", 3, resolution=8, knobs=SMALL)


@pytest.fixture(scope="module")
def weights(run: Path) -> Path:
    """An export without graphs."""
    assert main(["export", str(run), str(run.parent / "weights"), "--formats", "none", "--license", "cc0-1.0"]) == 0
    return run.parent / "weights"


@pytest.mark.full
def test_graphs_agree_where_this_package_is_not(run: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), str(out)]) == 0
    assert "generator.onnx" in capsys.readouterr().out
    generator = load_generator(run, torch.device("cpu")).generator
    cases = []
    for seed, (count, psi) in enumerate([(1, 1.0), (3, 0.5), (7, 0.0)]):
        z, labels = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), (torch.arange(count) + seed) % 3
        samples = generator.synthesize(generator.map(z, labels, psi), labels)
        cases.append({"z": z, "labels": labels, "psi": torch.tensor(psi), "samples": samples})
    torch.save(cases, tmp_path / "cases.pt")
    done = subprocess.run([sys.executable, "-c", STRANGER, str(out), str(tmp_path / "cases.pt")], cwd=tmp_path, timeout=600,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    blocks = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=out, timeout=600, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        assert done.returncode == 0, block + done.stderr


@pytest.mark.full
@pytest.mark.parametrize("knobs", [R3GAN, DCGAN], ids=["r3gan", "dcgan"])
def test_a_family_without_truncation(knobs: list[str], tmp_path: Path):
    """The statistics of DCGAN are constants of the graph."""
    run = make_run(tmp_path / "run", 0, resolution=8, knobs=knobs)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0  # compares by itself
    module = torch.export.load(tmp_path / "out/generator.pt2").module()
    generator, z = from_pretrained(tmp_path / "out"), torch.randn(5, 8)
    assert torch.allclose(module(z), generator.synthesize(z, None), rtol=0, atol=1e-5)


@pytest.mark.full
def test_a_family_with_a_mean_latent_for_each_class(tmp_path: Path):
    run = make_run(tmp_path / "run", 3, resolution=8, knobs=GAT)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0  # compares by itself
    module = torch.export.load(tmp_path / "out/generator.pt2").module()
    generator, z, labels = from_pretrained(tmp_path / "out"), torch.randn(5, 8), torch.tensor([2, 0, 1, 1, 2])
    for psi in (0.0, 0.7):
        expected = generator.synthesize(generator.map(z, labels, psi), labels)
        assert torch.allclose(module(z, labels, torch.tensor(psi)), expected, rtol=0, atol=1e-5)


def test_weights_come_back_to_the_last_bit(run: Path, weights: Path):
    index, labels = torch.zeros(1, dtype=torch.int64), torch.tensor([1])
    one, other = (draw_samples(generator, 7, "generate", index, labels, Sampling(0.7))
                  for generator in (load_generator(run, torch.device("cpu")).generator, from_pretrained(weights)))
    assert torch.equal(one, other)


def test_the_code_of_the_card_draws_the_picture_of_generate(run: Path, weights: Path, tmp_path: Path, monkeypatch):
    """Also where the class of a seed is not 0."""
    (block,) = re.findall(r"```python\n(.*?)```", (weights / "README.md").read_text(), re.DOTALL)
    assert main(["generate", str(run), "--seeds", "7", "--out", str(tmp_path)]) == 0
    monkeypatch.chdir(weights)
    names: dict = {}
    exec(block, names)
    (picture,) = tmp_path.glob("seed*.png")
    assert np.array_equal(to_uint8(names["sample"])[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(picture)))


def test_the_card_has_the_scores_of_these_weights_alone(run: Path, tmp_path: Path):
    digest = load_generator(run, torch.device("cpu")).digest
    line = {"version": 1, "nimg": 1000, "network": "net", "network_sha256": "0" * 64, "count": 50, "seed": 0, "data": "d" * 64,
            "seconds": 1.0, "time": 1.0}
    score = {"value": 12.25, "error": None, "floor": 1.5, "lower_is_better": True}
    lines = [{**line, "digest": digest, "scores": {"fd": score}}, {**line, "digest": "1" * 64, "scores": {"other": score}}]
    (run / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["export", str(run), str(tmp_path / "out"), "--formats", "none", "--title", "Cats"]) == 0
    text = (tmp_path / "out/README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "stylegan_dist"
    assert head["license"] == "other"
    assert "# Cats" in text
    assert "| fd | 12.25 | 1.5 | net | 50 |" in text
    assert "other |" not in text
    assert "generator.onnx" not in text


def test_the_card_of_arrays_says_how_they_are_scaled(run: Path, weights: Path):
    record = (weights / "config.json").read_bytes()
    description = read_record(Description, record, len(record))
    generator = from_pretrained(weights)
    arrays = replace(description, data=replace(description.data, array=Array("float32", (0.0,), (2.0,))))
    film = Array("uint8", (127.5,), (127.5,), film=FilmForm(2, 3, 8.0))
    clips = replace(description, data=replace(description.data, channels=6, array=film))
    for described, word, other in ((arrays, "samples * scale + offset", "127.5"), (description, "127.5", "scale"),
                                   (clips, "clips of 2 frames, 8 a second: `samples.unflatten(1, (2, 3))`", "move alike")):
        text = model_card(run, described, generator, [], CardOptions())
        assert word in text
        assert other not in text


@pytest.mark.parametrize(("words", "message"), [
    (["--formats", "tflite"], "tflite"), (["--nimg", "77"], "77"),
])
def test_bad_input_is_refused_in_a_line(run: Path, tmp_path: Path, capsys, words, message):
    assert main(["export", str(run), str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays_as_it_is(run: Path, weights: Path, capsys):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in weights.iterdir())
    assert main(["export", str(run), str(weights)]) == 2
    assert str(weights) in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in weights.iterdir()) == before


@pytest.mark.parametrize(("formats", "limit"), [("none", 1000), ("torch", 50_000)])
def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path, capsys, formats: str, limit: int):
    out = tmp_path / "exports" / "one"
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # bytes of a file
    try:
        code = main(["export", str(run), str(out), "--formats", formats])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert code == 2
    assert "make room" in capsys.readouterr().err.splitlines()[-1]
    assert not list(out.parent.iterdir())


def test_without_the_packages_for_onnx(run: Path, tmp_path: Path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert "onnxscript" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_not_kept(run: Path, tmp_path: Path, capsys, monkeypatch):
    generator = load_generator(run, torch.device("cpu")).generator

    def write(program, names, path):
        path.write_bytes(b"a graph")
        return lambda inputs: graphs.SampleGraph(generator)(*inputs.values()) * 1.001

    monkeypatch.setattr(graphs, "program_of", lambda generator: "takes seconds")

    monkeypatch.setitem(FORMATS, "torch", ("generator.pt2", write))
    assert main(["export", str(run), str(tmp_path / "out"), "--formats", "torch"]) == 2
    assert "differs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "other", "short"])
def test_damaged_exports_are_refused(weights: Path, tmp_path: Path, damage):
    description = json.loads((weights / "config.json").read_text())
    content = (weights / "model.safetensors").read_bytes()
    if damage == "other":
        description["generator"]["w_dim"] = 16
    if damage != "missing":
        (tmp_path / "config.json").write_text(json.dumps(description))
    (tmp_path / "model.safetensors").write_bytes(content[:1000] if damage == "short" else content)
    with pytest.raises(InputError, match=str(tmp_path)):
        from_pretrained(tmp_path)
