"""Pictures by seed: the same pixels whatever else is drawn, and clear errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from untrained_run import make_run

from stylegan_dist.errors import InputError
from stylegan_dist.ops import native
from stylegan_dist.tools.generate import GRID_NAME, GenerateOptions, generate, parse_seeds
from stylegan_dist.training.checkpoint import checkpoint_folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("plain") / "run", 0)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("conditional") / "run", 3)


def draw(run: Path, out: Path, seeds, **options) -> dict[str, np.ndarray]:
    """Pixels by file name, without the grid."""
    shutil.rmtree(out, ignore_errors=True)
    grid = generate(run, out, GenerateOptions(list(seeds), **options))
    assert grid == out / GRID_NAME
    assert grid.is_file()
    return {path.stem: np.asarray(Image.open(path)) for path in out.glob("seed*.png")}


@pytest.fixture(scope="module")
def reference(plain, tmp_path_factory):
    return draw(plain, tmp_path_factory.mktemp("pictures"), range(48))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_pictures_are_pictures(reference):
    assert len(reference) == 48
    assert all(picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for picture in reference.values())
    assert all(picture.std() > 10 for picture in reference.values()), "not flat"
    assert len({picture.tobytes() for picture in reference.values()}) == 48


@pytest.mark.parametrize("seeds", [[5], [40, 3, 17], pytest.param(list(range(47, -1, -1)), marks=pytest.mark.full),
                                   [9, 9, 8, 9]])
def test_the_other_seeds_do_not_matter(plain, reference, seeds, tmp_path):
    part = draw(plain, tmp_path, seeds)
    assert same(part, {f"seed{seed:04d}": reference[f"seed{seed:04d}"] for seed in seeds})


def test_truncation_and_noise(plain, reference, tmp_path):
    other = {
        "half": draw(plain, tmp_path / "half", range(4), truncation=0.5),
        "none": draw(plain, tmp_path / "none", range(4), truncation=0.0),
        "noiseless": draw(plain, tmp_path / "noiseless", range(4), noise="none"),
    }
    first = {name: reference[name] for name in other["half"]}
    assert same(draw(plain, tmp_path / "one", range(4), truncation=1.0), first)
    for pictures in other.values():
        assert not any(np.array_equal(pictures[name], first[name]) for name in first)
    assert len({picture.tobytes() for picture in other["none"].values()}) == 1, "all are the mean"
    assert len({picture.tobytes() for picture in other["half"].values()}) == 4


def test_classes(conditional, tmp_path):
    in_turn = draw(conditional, tmp_path / "turn", range(6))
    assert sorted(in_turn) == [f"seed{seed:04d}-class{seed % 3}" for seed in range(6)]
    one = draw(conditional, tmp_path / "one", range(6), label=1)
    assert set(one) == {f"seed{seed:04d}-class1" for seed in range(6)}
    for name in set(one) & set(in_turn):
        assert np.array_equal(one[name], in_turn[name])
    assert not np.array_equal(one["seed0000-class1"], in_turn["seed0000-class0"]), "the class matters"
    alone = draw(conditional, tmp_path / "alone", [4], label=2)
    together = draw(conditional, tmp_path / "together", [1, 4, 9], label=2)
    assert np.array_equal(alone["seed0004-class2"], together["seed0004-class2"])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_other_channels(channels, mode, tmp_path):
    run = make_run(tmp_path / "run", 0, channels, resolution=8)
    generate(run, tmp_path / "out", GenerateOptions([7, 12345]))
    assert Image.open(tmp_path / "out" / "seed0007.png").mode == mode
    assert (tmp_path / "out" / "seed12345.png").is_file()


def test_the_grid_holds_the_pictures_in_their_order(plain, reference, tmp_path):
    draw(plain, tmp_path, [3, 1, 2], columns=2)
    sheet = np.asarray(Image.open(tmp_path / GRID_NAME))
    assert sheet.shape == (64 + 2 + 64, 64 + 2 + 64, 3), "shown twice as large"
    for place, seed in (((0, 0), 3), ((0, 66), 1), ((66, 0), 2)):
        part = sheet[place[0]:place[0] + 64:2, place[1]:place[1] + 64:2]
        assert np.array_equal(part, reference[f"seed{seed:04d}"])


def test_a_large_grid_is_cut(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("stylegan_dist.tools.generate.GRID_LIMIT", 5)
    assert len(draw(plain, tmp_path, range(12), columns=5)) == 12
    assert Image.open(tmp_path / GRID_NAME).size == (5 * 64 + 4 * 2, 64)


def test_nobody_waits_for_a_compiler(plain, reference, tmp_path, monkeypatch):
    """Pixels do not depend on whether there are native operators, unless these are asked for."""
    def search() -> native.Native:
        raise AssertionError("it looks for native operators, and would build them")

    found = native.native()
    monkeypatch.setattr(native, "native", search)
    part = draw(plain, tmp_path / "reference", range(3))
    assert same(part, {name: reference[name] for name in part})
    with pytest.raises(AssertionError):
        draw(plain, tmp_path / "fused", range(3), ops="fused")
    monkeypatch.setattr(native, "native", lambda: found)
    if found.devices:
        for name, picture in draw(plain, tmp_path / "fused", range(3), ops="fused").items():
            steps = np.abs(picture.astype(int) - part[name])
            assert steps.max() <= 1
            assert (steps > 0).mean() < 0.01
    monkeypatch.setattr(native, "native", lambda: native.Native((), "no compiler"))
    with pytest.raises(InputError, match=r"--ops fused.*no compiler.*--ops reference"):
        draw(plain, tmp_path / "none", range(3), ops="fused")


# Errors

@pytest.mark.parametrize(("conditioned", "options", "message"), [
    (False, {"label": 0}, "--class has no meaning here: the run was trained without labels"),
    (True, {"label": 3}, "--class 3 does not exist: the run has classes 0 to 2"),
    (True, {"label": -1}, "--class -1 does not exist"),
    (False, {"truncation": float("nan")}, "--trunc nan must be a number"),
    (False, {"truncation": float("inf")}, "--trunc inf must be a number"),
    (False, {"device": "gpu"}, "--device gpu is not there: use cpu, or cuda"),
    (False, {"device": "tpu:0"}, "--device tpu:0 is not there"),
])
def test_options_that_make_no_sense(plain, conditional, conditioned, options, message, tmp_path):
    with pytest.raises(InputError) as caught:
        generate(conditional if conditioned else plain, tmp_path / "out", GenerateOptions([0], **options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(plain, tmp_path):
    with pytest.raises(InputError, match="--device cuda is not there"):
        generate(plain, tmp_path, GenerateOptions([0], device="cuda"))


def test_what_is_no_run(plain, tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml"):
        generate(tmp_path, tmp_path / "out", GenerateOptions([0]))
    run = shutil.copytree(plain, tmp_path / "run")
    (checkpoint_folder(run, 1000) / "g_ema.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"no whole checkpoint .*g_ema\.safetensors is damaged.*restore"):
        generate(run, tmp_path / "out", GenerateOptions([0]))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="has no whole checkpoint: train it first"):
        generate(run, tmp_path / "out", GenerateOptions([0]))


def test_an_unwritable_folder(plain, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file.*--out"):
        generate(plain, tmp_path / "file", GenerateOptions([0]))


@pytest.mark.parametrize(("text", "seeds"), [
    ("3", [3]), ("0-3", [0, 1, 2, 3]), ("1,5,10-12", [1, 5, 10, 11, 12]), (" 1 , 2 ", [1, 2]), ("5-5", [5]),
    ("4294967295", [4294967295]), ("007", [7]), ("2,2", [2, 2]),
])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1-2-3", "1,,2", "1.5", "0x1", "3-1", "4294967296", "0-4294967296", "+1",
                                  "²"])
def test_what_are_no_seeds(text):
    with pytest.raises(InputError) as caught:
        parse_seeds(text)
    assert f"--seeds {text!r}" in str(caught.value)
