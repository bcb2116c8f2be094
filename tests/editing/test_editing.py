"""Edits of samples: directions that are known, closed walks, films, sheets, blended generators."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from untrained_run import R3GAN, TINY, make_run

from stylegan_dist.cli import main
from stylegan_dist.editing.blending import blend
from stylegan_dist.editing.directions import ganspace, load_directions, parse_layers, sefa
from stylegan_dist.editing.points import draw, points_of_files, points_of_seeds
from stylegan_dist.editing.walks import between, closed_spline
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import declared
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.latents.saved import SavedLatents, save_latents
from stylegan_dist.latents.trained import Trained, open_trained
from stylegan_dist.networks.generator import Generator, SampleShape

RUN_SIDE = 32


class Linear(Generator):
    """w = A z, and one layer whose style is B w."""

    num_classes, z_dim, num_ws = 0, 6, 2

    def __init__(self, spread: torch.Tensor, style: torch.Tensor):
        super().__init__()
        self.spread, self.style = spread, style

    def map(self, z, labels, truncation=1.0):
        return z @ self.spread.T + 5.0

    def synthesize(self, latents, labels, noise="const"):
        return (latents[:, 0] @ self.style.T).unflatten(1, (1, 2, 3))

    def style_matrices(self):
        return [(0, self.style)]


def linear(spread: torch.Tensor, style: torch.Tensor):
    return Trained(Path("toy"), Linear(spread, style), SampleShape(4, 1), declared(None), 0, "0" * 64, torch.device("cpu"))


def rotation(seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0].float()


def test_sefa_finds_the_directions_of_a_linear_layer():
    """Rows along an orthonormal basis, as often as its order says: the basis is what maximises |A n|²."""
    basis = rotation(0)
    style = torch.cat([basis[k:k + 1].repeat(6 - k, 1) * (1 + k) for k in range(6)])  # lengths of rows do not matter
    found = sefa(linear(torch.eye(6), style), [0], 4)
    assert torch.allclose((found.vectors @ basis.T).abs(), torch.eye(6)[:4], atol=1e-4)
    assert torch.allclose(found.spreads, torch.ones(4), rtol=0.03)


def test_ganspace_finds_the_axes_of_the_population():
    basis, spreads = rotation(1), torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.1])
    found = ganspace(linear(basis.T * spreads, torch.eye(6)), [0, 1], 3, draws=20_000)
    assert torch.allclose((found.vectors @ basis.T).abs(), torch.eye(6)[:3], atol=0.05)
    assert torch.allclose(found.spreads, spreads[:3], rtol=0.03)


def test_an_edit_moves_its_layers_alone():
    found = sefa(linear(torch.eye(6), torch.eye(6)), [0], 1)
    ws = torch.randn(3, 2, 6)
    moved = found.move(ws, 0, 2.0)
    assert torch.equal(moved[:, 1], ws[:, 1])
    assert torch.allclose(moved[:, 0] - ws[:, 0], (2 * found.spreads[0] * found.vectors[0]).expand(3, -1), atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_walk_is_closed_and_smooth(count):
    keys, frames = torch.randn(count, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(count)), 400
    points = torch.stack(list(closed_spline(keys, frames)))
    assert torch.allclose(points[::frames], keys)
    around = torch.cat([points[-3:], points, points[:3]])
    velocity = around.diff(dim=0) * frames
    acceleration = velocity.diff(dim=0) * frames
    assert acceleration.diff(dim=0).abs().max() < 0.05 * acceleration.abs().max()  # a jump would be of its size


def test_a_walk_between_opposite_points_is_known():
    """Two keys: the spline is a cubic with velocity 0 at both, 3 t² - 2 t³."""
    points = torch.cat(list(closed_spline(torch.tensor([[0.0], [1.0]], dtype=torch.float64), 4)))
    assert points.tolist() == pytest.approx([0, 0.15625, 0.5, 0.84375, 1, 0.84375, 0.5, 0.15625])


def test_noise_maps_keep_their_strength_on_the_way(run: Path):
    generator = open_trained(run, "cpu").generator
    fixed, own = generator.noise_maps(), [3 * torch.randn_like(values) for values in generator.noise_maps()]
    assert between(generator, [], [], 0.3) == []
    assert all(torch.equal(a, b) for a, b in zip(between(generator, own, [], 0.0), own, strict=True))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(between(generator, own, [], 1.0), fixed, strict=True))
    for half, a, b in zip(between(generator, own, [], 0.5), own, fixed, strict=True):
        sizes = [float(values.square().mean().sqrt()) for values in (half, a, b)]
        assert sizes[0] == pytest.approx((sizes[1] + sizes[2]) / 2, rel=1e-5)


def test_layers_are_read():
    assert parse_layers("0-2,5", 6) == (0, 1, 2, 5)
    assert parse_layers("all", 3) == (0, 1, 2)
    for wrong in ("6", "2-1", "", "a", "0-", "-1"):
        with pytest.raises(InputError, match=r"0 to 5|upwards"):
            parse_layers(wrong, 6)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("edited") / "run", 3)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_directions_from_the_command_line(run: Path, tmp_path: Path, capsys):
    file = tmp_path / "d.safetensors"
    find = ["edit", "find", str(run), str(file), "--layers", "0-3", "--count", "2", "--class", "1", "--device", "cpu"]
    assert main(find) == 0
    assert (tmp_path / "d.png").is_file()
    found = load_directions(file, open_trained(run, "cpu"))
    assert found.facts.layers == (0, 1, 2, 3)
    assert main(["edit", "apply", str(run), "--directions", str(file), "--seeds", "4", "--strengths=-2,0", "--out",
                 str(tmp_path / "e.png"), "--device", "cpu"]) == 0
    assert main(["generate", str(run), "--seeds", "4", "--out", str(tmp_path / "g")]) == 0
    sheet, plain = pixels(tmp_path / "e.png"), pixels(next((tmp_path / "g").glob("seed*.png")))
    unmoved = sheet[-64:, -64:]  # enlarged by two
    assert np.array_equal(unmoved[::2, ::2], plain)
    assert np.abs(sheet[-64:, :64] - unmoved).max() > 0
    capsys.readouterr()
    assert main(["edit", "apply", str(run), "--directions", str(file), "--number", "2"]) == 2
    assert "0 to 1" in capsys.readouterr().err
    other = make_run(tmp_path / "other", 3, knobs=[*TINY, "run.seed=1"])
    for at, noted in ((run, False), (other, True)):  # shapes fit both
        assert main(["edit", "apply", str(at), "--directions", str(file), "--seeds", "4", "--strengths=0", "--out",
                     str(tmp_path / "o.png"), "--device", "cpu"]) == 0
        assert (f"note: {file} was made with another checkpoint than that of {at}" in capsys.readouterr().err) == noted
    file.write_bytes(file.read_bytes()[:-20])
    assert main(["edit", "apply", str(run), "--directions", str(file)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_mixing_takes_the_styles_of_columns(run: Path, tmp_path: Path):
    """All layers from columns: each column shows its own sample everywhere."""
    assert main(["edit", "mix", str(run), "--rows", "0,3", "--columns", "6,9", "--layers", "all", "--class", "0", "--out",
                 str(tmp_path / "m.png"), "--device", "cpu"]) == 0
    sheet = pixels(tmp_path / "m.png")
    row, column = (sheet.shape[0] + 2) // 3, 64 + 2  # with captions and gaps
    for x in (column, 2 * column):
        own, first, second = (sheet[row * k + row - 66:][:64, x:x + 64] for k in range(3))
        assert np.array_equal(own, first)
        assert np.array_equal(own, second)
    assert not np.array_equal(sheet[-64:, :64], sheet[-64:, -64:])


def test_sheets_of_truncation_and_layers(run: Path, tmp_path: Path, capsys):
    assert main(["edit", "truncate", str(run), "--psis=0,1", "--seeds", "0,3", "--class", "2", "--out", str(tmp_path / "t.png"),
                 "--device", "cpu"]) == 0
    sheet = pixels(tmp_path / "t.png")
    assert np.array_equal(sheet[-64:, :64], sheet[-64 - 66:-66, :64])  # psi 0 is one picture
    assert main(["edit", "layers", str(run), "--seeds", "0,3", "--out", str(tmp_path / "l.png"), "--device", "cpu"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("layer")]
    assert len(told) == open_trained(run, "cpu").generator.num_ws
    assert (tmp_path / "l.png").is_file()


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_films(run: Path, tmp_path: Path, ending: str):
    out = tmp_path / f"walk.{ending}"
    assert main(["edit", "walk", str(run), "--seeds", "0,3", "--frames", "4", "--fps", "10", "--out", str(out)]) == 0
    if ending == "gif":
        with Image.open(out) as film:
            assert film.n_frames == 8
            assert film.info["duration"] == 100
        return
    import imageio_ffmpeg

    done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(out), "-f", "null", "-"], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert "frame=    8" in done.stderr
    assert "64x64" in done.stderr


def test_a_film_that_ffmpeg_does_not_finish_is_an_error(run: Path, tmp_path: Path, capsys, monkeypatch):
    """Also where it takes all frames, as on a full disk."""
    for script, word in (("cat >/dev/null; echo no space >&2; exit 3", "no space"), ("exit 1", "exit code 1")):
        program = tmp_path / "ffmpeg"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
        out = tmp_path / "film" / "walk.mp4"
        assert main(["edit", "walk", str(run), "--seeds", "0,3", "--frames", "4", "--out", str(out)]) == 2
        assert word in capsys.readouterr().err.splitlines()[-1]
        assert not list(out.parent.iterdir())


def test_a_long_walk_takes_no_memory():
    walk = closed_spline(torch.randn(1000, 18, 16), 100_000)  # 100 GB
    assert torch.isfinite(next(walk)).all()


def test_a_full_disk_leaves_nothing_of_a_blended_run(run: Path, tmp_path: Path, capsys):
    out = tmp_path / "runs" / "both"
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # bytes of a file
    try:
        code = main(["edit", "blend", str(run), str(run), str(out), "--at", "8"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert code == 2
    assert capsys.readouterr().err.startswith("error: cannot write")
    assert not list(out.parent.iterdir())


def test_a_blended_run_has_the_stages_of_both(tmp_path: Path, capsys):
    a, b = (make_run(tmp_path / name, 0, knobs=[*TINY, f"run.seed={seed}"])
            for seed, name in enumerate("ab"))
    assert main(["edit", "blend", str(a), str(b), str(tmp_path / "c"), "--at", "8"]) == 0
    one, other, both = (open_trained(path, "cpu").generator.state_dict() for path in (a, b, tmp_path / "c"))
    for name, value in both.items():
        source = other if name.startswith(("synthesis.b16", "synthesis.b32")) else one
        assert torch.equal(value, source[name]), name
    assert main(["generate", str(tmp_path / "c"), "--seeds", "0", "--out", str(tmp_path / "g")]) == 0
    assert f"note: the weights of {a} and {b} have nothing in common (correlation " in capsys.readouterr().err
    assert main(["edit", "blend", str(a), str(tmp_path / "c"), str(tmp_path / "related"), "--at", "8"]) == 0
    assert "note" not in capsys.readouterr().err
    trained = open_trained(a, "cpu"), open_trained(b, "cpu")
    soft = blend(*trained, 8, width=1.0).state_dict()
    name = "synthesis.b16.conv0.weight"
    share = 1 / (1 + np.exp(-0.5))
    assert torch.allclose(soft[name], torch.lerp(one[name], other[name], share))
    capsys.readouterr()
    assert main(["edit", "blend", str(a), str(b), str(a), "--at", "8"]) == 2  # what was trained is never replaced
    assert main(["edit", "blend", str(a), str(b), str(tmp_path / "d"), "--at", "32"]) == 2
    assert "4, 8, 16" in capsys.readouterr().err
    flat = make_run(tmp_path / "flat", 0, knobs=R3GAN)
    assert main(["edit", "blend", str(flat), str(flat), str(tmp_path / "e"), "--at", "8"]) == 2
    assert "has no stages of resolutions" in capsys.readouterr().err


def test_blended_magnitudes_are_those_of_their_layers(tmp_path: Path):
    """StyleGAN3 keeps one vector for all layers."""
    knobs = ["data.shards=somewhere", "generator.family=stylegan3-t", "generator.z_dim=8", "generator.w_dim=8",
             "generator.layers=4", "generator.channel_base=64", "generator.channel_max=8", "discriminator.channel_base=64",
             "discriminator.channel_max=8", "discriminator.mapping_layers=1"]
    a, b = (open_trained(make_run(tmp_path / name, 0, knobs=[*knobs, f"run.seed={seed}"]), "cpu")
            for seed, name in enumerate("ab"))
    rates = a.generator.stage_of("synthesis.magnitudes")
    at = min(rates)
    assert at < max(rates)
    b.generator.synthesis.magnitudes.add_(1)
    one, other, both = (g.state_dict() for g in (a.generator, b.generator, blend(a, b, at)))
    for layer, rate in enumerate(rates):
        source = one if rate <= at else other
        assert both["synthesis.magnitudes"][layer] == source["synthesis.magnitudes"][layer]
        name = f"synthesis.layers.{layer}.weight"
        assert torch.equal(both[name], source[name])


@pytest.mark.parametrize("words", [
    ["walk", "RUN", "--seeds", "3"], ["walk", "RUN", "--out", "x.avi"], ["apply", "RUN", "--directions", "nowhere"],
    ["truncate", "RUN", "--psis", "a"], ["layers", "RUN", "--class", "7"], ["mix", "RUN", "--layers", "99"],
    ["find", "nowhere", "x.safetensors"], ["walk", "RUN", "--latents", "nowhere.safetensors"], ["find", "RUN", "x.png"],
    ["layers", "RUN", "--out", "x.jpg"], ["layers", "RUN", "--out", "."], ["layers", "RUN", "--seeds", "0-9999"],
    ["mix", "RUN", "--rows", "0-9999", "--columns", "0-9999"], ["walk", "RUN", "--frames", "100000", "--out", "x.gif"],
    ["layers", "RUN", "--latents", "a.safetensors", "b.safetensors", "--trunc", "0.5"],
])
def test_bad_input_is_one_line(run: Path, capsys, words):
    assert main(["edit", *(str(run) if word == "RUN" else word for word in words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")


def test_seeds_are_those_of_generate(run: Path):
    trained = open_trained(run, "cpu")
    (point,) = points_of_seeds(trained, [5], None, 1.0)
    assert point.label == 2
    w = trained.generator.latents(5, "generate", torch.zeros(1, dtype=torch.int64), torch.tensor([2]))
    assert torch.equal(point.ws, w.expand(trained.generator.num_ws, -1))


def test_latents_in_files_are_drawn_as_they_were_found(run: Path, tmp_path: Path):
    trained = open_trained(run, "cpu")
    generator = trained.generator
    ws = generator.latents(3, "found", torch.arange(generator.num_ws), torch.zeros(generator.num_ws, dtype=torch.int64))
    maps = [torch.randn(one.shape[2:]) for one in generator.noise_maps()]
    saved = SavedLatents(ws, maps, {"space": "w+", "class": 1})
    save_latents(tmp_path / "me.safetensors", saved)
    (point,) = points_of_files(trained, [str(tmp_path / "me.safetensors")])
    assert (point.name, point.label) == ("me", 1)
    assert torch.equal(draw(trained, point), to_uint8(saved.drawn_by(trained)[0]))
