"""StyleGAN-V: the motion code against its formula, which frames are judged, clips of any length, and a run of it."""

from __future__ import annotations

import base64
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from clips import FRAMES, SIDE
from launching import TINY, TINY_STYLEGAN_V
from PIL import Image
from saving import assert_equal_tensors
from small_families import index_of
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.data.index import load_index
from stylegan_dist.errors import InputError
from stylegan_dist.families.stylegan_v.motion import LoopingMotion, Motion
from stylegan_dist.families.stylegan_v.networks import Generator, joined_at
from stylegan_dist.families.stylegan_v.objective import StyleGanVObjective
from stylegan_dist.kinds import Image as ImageKind
from stylegan_dist.kinds import Kind
from stylegan_dist.kinds.clip import Clip
from stylegan_dist.kinds.film import FilmForm
from stylegan_dist.networks.generator import SampleShape, Sampling
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.memory import estimate_memory
from stylegan_dist.training.rules import resolve

CPU, BATCH = torch.device("cpu"), 4


def kind_of(frames: int, channels: int, loops: bool = False) -> Clip:
    return Clip("uint8", (127.5,), (127.5,), film=FilmForm(frames, channels, 10.0, loops))


def resolved(*overrides: str, frames: int = FRAMES, channels: int = 3, resolution: int = SIDE, kind: Kind | None = None):
    kind = kind or kind_of(frames, channels)
    index = index_of(resolution, 0, frames * channels, "npy", kind=kind)
    return resolve(load_config(None, [*TINY_STYLEGAN_V, "data.shards=somewhere", *overrides]), index), index


def networks(*overrides: str, **options):
    """Generator and discriminator of random weights, and the objective of both, in float64."""
    (found, index) = resolved(*overrides, **options)
    shape = SampleShape(index.resolution, index.channels)
    g, d = build_generator(found.config, shape, CPU), build_discriminator(found.config, shape, CPU)
    return g.double(), d.double(), StyleGanVObjective(found.config, g, d, None)


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def code_at(motion: Motion, noise: Tensor, t: float) -> Tensor:
    """The code of one clip at one time, from the formula: noise [K, z_dim] -> [width]."""
    def convolved(x: Tensor, weight: Tensor) -> Tensor:
        effective = 0.01 * weight / math.sqrt(weight.shape[1] * weight.shape[2])
        kernel = weight.shape[2]
        sums = [sum(effective[:, :, j] @ x[i + j] for j in range(kernel)) for i in range(len(x) - kernel + 1)]
        return lrelu(torch.stack(sums))

    def plain(layer, u: Tensor) -> Tensor:
        return layer.weight[:, :, 0] @ u / math.sqrt(layer.weight.shape[1])

    u = convolved(convolved(noise, motion.conv0.weight), motion.conv1.weight)
    left = math.floor(t / motion.distance)
    one, other, tau = u[left], u[left + 1], t - left * motion.distance
    count = motion.frequencies
    period = torch.tensor([motion.distance * (motion.slowest / motion.distance) ** (i / (count - 1)) for i in range(count)],
                          dtype=torch.float64)

    def psi(time: float) -> Tensor:
        angle = 2 * math.pi * (torch.tanh(plain(motion.periods, one)) + 1) * time / period + plain(motion.phases, one)
        return torch.cat([torch.sin(angle), torch.cos(angle)])

    a = tau / motion.distance
    ends = (1 - a) * psi(0) + a * psi(motion.distance)
    return psi(tau) - ends + (1 - a) * plain(motion.aligners, one) + a * plain(motion.aligners, other)


def test_motion_code_is_that_of_the_formula():
    g, _, _ = networks()
    assert isinstance(g.motion, Motion)
    times = torch.tensor([[0.0, 3.0, 4.0, 4.5, 11.75], [1.0, 2.0, 3.0, 7.9, 8.0]], dtype=torch.float64)
    noise = reference.normals(0, 2, g.motion.noises(12), g.motion.z_dim)
    expected = torch.stack([torch.stack([code_at(g.motion, noise[n], t) for t in times[n].tolist()]) for n in range(2)])
    assert torch.allclose(g.motion(noise, times), expected, atol=1e-6)


def test_motion_has_no_jumps_and_any_time_is_like_any_other():
    g, _, _ = networks()
    motion = g.motion
    noise = reference.normals(0, 1, motion.noises(40), motion.z_dim)
    anchors = motion.distance * torch.arange(1, 9, dtype=torch.float64)
    before, after = (motion(noise, anchors[None] + small) for small in (-1e-7, 1e-7))
    assert (before - after).abs().max() < 1e-5
    later = motion(noise, torch.tensor([[13.3]], dtype=torch.float64) + motion.distance)
    assert torch.allclose(later, motion(noise[:, 1:], torch.tensor([[13.3]], dtype=torch.float64)), atol=1e-9)
    assert sum("bias" in name for name, _ in motion.named_parameters()) == 0


def test_looping_motion_loops_smoothly():
    g, _, _ = networks("generator.loop_frames=10")
    motion = g.motion
    assert isinstance(motion, LoopingMotion)
    noise = reference.normals(0, 3, 1, motion.z_dim)
    times = torch.arange(10, dtype=torch.float64).expand(3, -1)
    codes = motion(noise, times)
    assert torch.allclose(motion(noise, times + 10), codes, atol=1e-6)
    assert (codes[0] - codes[1]).abs().max() > 0.1
    # Sines of at most 4 / 10 per frame have no components above that.
    spectrum = torch.fft.rfft(codes, dim=1).abs()
    assert spectrum[:, 5:].max() < 1e-5 * spectrum.max()


def test_looping_motion_turns_both_ways():
    motion = networks("generator.loop_frames=10", "generator.motion_frequencies=10")[0].motion
    codes = motion(reference.normals(0, 2, 1, motion.z_dim), torch.arange(10, dtype=torch.float64).expand(2, -1))
    sines, cosines = codes.chunk(2, dim=2)
    turning = torch.fft.fft(torch.complex(cosines, sines), dim=1).abs().argmax(1)
    assert (turning == torch.tensor([1, 2, 3, 4, -1, -2, -3, -4, 1, 2]) % 10).all()


def test_frames_are_chosen_by_address_and_all_alike():
    _, _, objective = networks()
    index = torch.arange(4000)
    times = objective.times("d_main", index)
    assert torch.equal(times[7:9], objective.times("d_main", index[7:9]))
    assert (times[:, 1:] > times[:, :-1]).all()
    triples, counts = times.unique(dim=0, return_counts=True)
    assert len(triples) == math.comb(FRAMES, 3)
    assert (counts - 200).abs().max() < 5 * math.sqrt(200)
    assert not torch.equal(times, objective.times("g_main", index))


@pytest.mark.parametrize(("side", "apart", "together"), [(16, (16, 8), ()), (32, (32, 16), (8,))])
def test_discriminator_sees_three_frames_one_by_one_and_then_together(side, apart, together):
    _, d, objective = networks(resolution=side)

    def through(blocks: tuple[int, ...], x: Tensor) -> Tensor:
        return functools.reduce(lambda x, r: getattr(d, f"b{r}")(x), blocks, x)

    clips, index = reference.normals(0, BATCH, FRAMES * 3, side, side), torch.arange(BATCH)
    times = objective.times("d_main", index)
    frames = torch.stack([clips.view(BATCH, FRAMES, 3, side, side)[n, times[n]] for n in range(BATCH)])
    maps = torch.cat([through(apart, d.fromrgb(frames[:, i])) for i in range(3)], 1)
    assert joined_at(side) == side // 4
    assert maps.shape == (BATCH, 3 * getattr(d, f"b{apart[-1]}").conv1.weight.shape[0], side // 4, side // 4)
    x = through(together, maps).view(BATCH // 2, 2, -1, 4, 4)
    spread = ((x - x.mean(1, keepdim=True)).square().mean(1) + 1e-8).sqrt().mean((1, 2, 3)).repeat_interleave(2)
    x = torch.cat([x.flatten(0, 1), spread[:, None, None, None].expand(-1, 1, 4, 4)], 1)
    features = d.out(d.dense(d.conv(x).flatten(1)))
    angle = (times[:, 1:] - times[:, :-1])[:, :, None] * (math.pi / 2.0 ** torch.arange(d.waves))
    condition = d.mapping(torch.cat([angle.sin(), angle.cos()], 2).flatten(1).double(), None)
    expected = (features * condition).sum(1) / math.sqrt(features.shape[1])
    assert torch.allclose(objective.judge("d_main", "real", clips, None, index), expected, atol=1e-6)
    assert torch.allclose(objective.judge("d_main", "fake", frames.flatten(1, 2), None, index), expected, atol=1e-6)
    d.mbstd_group = 1
    assert not torch.allclose(d(frames.flatten(1, 2), None, times), d(frames.flatten(1, 2), None, times * 2))


def test_large_frames_are_joined_at_the_published_resolution():
    assert [joined_at(side) for side in (8, 64, 256, 1024)] == [4, 16, 16, 16]


def test_penalty_is_that_of_the_frames_which_are_seen():
    _, _, objective = networks()
    clips = reference.normals(0, BATCH, FRAMES * 3, SIDE, SIDE).requires_grad_(True)
    index = torch.arange(BATCH)
    (gradient,) = torch.autograd.grad(objective.judge("d_penalty", "real", clips, None, index).sum(), clips)
    seen = gradient.view(BATCH, FRAMES, -1).abs().sum(2) > 0
    assert [row.nonzero()[:, 0].tolist() for row in seen] == objective.times("d_penalty", index).tolist()


def test_generated_frames_are_those_of_the_clip():
    """The three frames of the game are cut from a clip that `film` would draw."""
    g, _, objective = networks()
    index = torch.arange(3, 3 + BATCH)
    frames, w = objective.generate("g_main", index, None)
    clips = g.film(objective.seed, "g_main", index, None, Sampling(), g.times(CPU))
    cut = clips.view(BATCH, FRAMES, 3, SIDE, SIDE)
    times = objective.times("g_main", index)
    expected = torch.stack([cut[n, times[n]] for n in range(BATCH)]).flatten(1, 2)
    assert torch.allclose(frames, expected, atol=1e-6)
    assert torch.allclose(w, g.latents(objective.seed, "g_main", index, None))
    assert (cut[:, 0] - cut[:, 3]).abs().max() > 1e-3


def test_clips_of_any_length_and_speed_begin_alike():
    g, _, _ = networks()
    index = torch.arange(2)
    sample = g.sample(1, "generate", index, None, Sampling())
    long = g.film(1, "generate", index, None, Sampling(), torch.arange(50, dtype=torch.float64))
    assert long.shape == (2, 150, SIDE, SIDE)
    assert torch.allclose(long[:, :FRAMES * 3], sample, atol=1e-6)
    slow = g.film(1, "generate", index, None, Sampling(), torch.arange(0, FRAMES, 0.5, dtype=torch.float64))
    assert torch.allclose(slow.unflatten(1, (-1, 3))[:, ::2].flatten(1, 2), sample, atol=1e-6)
    late = g.film(1, "generate", index, None, Sampling(), torch.tensor([49.0], dtype=torch.float64))
    assert torch.allclose(late, long[:, -3:], atol=1e-6)
    assert torch.allclose(g.sample(1, "generate", index[1:], None, Sampling()), sample[1:], atol=1e-6)


def test_losses_do_not_depend_on_micro_batches():
    _, _, objective = networks("discriminator.mbstd_group=1")
    objective.batch = BATCH
    clips, index = reference.normals(0, BATCH, FRAMES * 3, SIDE, SIDE), torch.arange(10, 10 + BATCH)
    for phase in objective.phases():
        for loss in phase.losses:
            whole = loss(MicroBatch(clips, None, index)).share
            parts = sum(loss(MicroBatch(clips[i:i + 1], None, index[i:i + 1])).share for i in range(BATCH))
            assert torch.allclose(parts, whole, rtol=1e-6), phase.name


def test_augmentation_is_the_same_for_all_frames():
    _, _, objective = networks("augment.pipe=bg", "augment.p=1")
    frame = reference.normals(0, BATCH, 1, 3, SIDE, SIDE).float()
    seen = {}
    objective.discriminate = lambda *given: seen.setdefault("images", given[2])
    objective.judge("d_main", "real", frame.expand(-1, FRAMES, -1, -1, -1).flatten(1, 2), None, torch.arange(BATCH))
    one, two, three = seen["images"].unflatten(1, (3, 3)).unbind(1)
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert not torch.allclose(one, frame[:, 0])


def test_rules_follow_the_data():
    found, index = resolved(kind=kind_of(8, 1, loops=True), frames=8, channels=1, resolution=32)
    assert (found.config.generator.frames, found.config.generator.loop_frames) == (8, 8)
    assert estimate_memory(found, index).peak > 0  # on the meta device
    assert resolved()[0].config.generator.loop_frames == 0
    with pytest.raises(InputError, match="the data has images: pack videos with stylegan-dist pack --video"):
        resolved(kind=ImageKind(), frames=1)
    with pytest.raises(InputError, match="the data has clips of 6 frames"):
        resolved("generator.frames=5")
    with pytest.raises(InputError, match="changes colours"):
        resolved("augment.pipe=bgc")


def test_published_sizes():
    """256 pixels, 512 maps: StyleGAN2's synthesis, and 512 sines and cosines beside the constant."""
    found, index = resolved("generator.channel_base=32768", "generator.channel_max=512", "generator.w_dim=512",
                            "generator.motion_frequencies=256", "discriminator.channel_base=32768", resolution=256)
    g = build_generator(found.config, SampleShape(256, index.channels), torch.device("meta"))
    assert isinstance(g, Generator)
    assert g.synthesis.b4.conv1.weight.shape == (512, 1024, 3, 3)
    assert g.synthesis.b256.torgb.weight.shape == (3, 128, 1, 1)


@pytest.fixture(scope="module")
def run(clip_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps in one go, and in two halves."""
    folder = tmp_path_factory.mktemp("stylegan_v")
    for name, lengths in (("whole", ("0.032",)), ("halves", ("0.016", "0.032"))):
        for length in lengths:
            assert main(["train", *TINY_STYLEGAN_V, f"data.shards={clip_shards}", f"run.dir={folder / name}",
                         "data.mirror=false", f"run.kimg={length}", "monitor.pictures_kimg=1000"]) == 0
    return folder


def test_continues_bit_for_bit(run):
    assert_equal_tensors(*(run / way / "checkpoints/nimg-00000032" for way in ("whole", "halves")))


def test_samples_move(run):
    for name in ("reals", "nimg-00000032"):
        path = run / "whole/samples" / name
        with Image.open(path.with_suffix(".gif")) as moving, Image.open(path.with_suffix(".png")) as still:
            assert moving.n_frames == FRAMES
            assert moving.size == still.size
    assert main(["report", str(run / "whole")]) == 0
    page = (run / "whole/report.html").read_text()
    shown = [base64.b64decode(part.split('"')[0]) for part in page.split("data:image/webp;base64,")[1:]]
    assert sum(b"ANIM" in picture[:64] for picture in shown) >= 2
    assert len(page) < 10_000_000


def test_generates_clips_of_any_length(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["generate", str(run / "whole"), "--seeds", "0-2", "--out", str(out), "--device", "cpu"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["grid.gif", "grid.png",
                                                          *(f"seed000{i}-class{i % 2}.webp" for i in range(3))]
    assert main(["generate", str(run / "whole"), "--seeds", "1", "--frames", "40", "--speed", "0.5", "--out", str(out),
                 "--device", "cpu"]) == 0
    with Image.open(out / "seed0001-class1.webp") as film:
        assert film.n_frames == 40
        pictures = []
        for number in (0, 1, 2 * FRAMES):
            film.seek(number)
            pictures.append(np.asarray(film.convert("L")).astype(float))
    assert main(["generate", str(run / "whole"), "--speed", "1e-6", "--out", str(out), "--device", "cpu"]) == 2
    assert "frames of 16 pixels are more than fit" in capsys.readouterr().err
    assert np.abs(pictures[0] - pictures[2]).mean() < 4  # it loops after twice as many frames at half the speed
    capsys.readouterr()


def test_scores(run, clip_shards, capsys):
    assert main(["evaluate", str(run / "whole"), "--count", "24", "--device", "cpu"]) == 0
    (line,) = (run / "whole/evaluation.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert {"motion_differences", "motion_correlation", "motion_speed", "loop_jump"} == set(found["scores"])
    assert load_index(clip_shards).fingerprint == found["data"]
    capsys.readouterr()


@pytest.mark.full
def test_exports_for_any_batch(run, tmp_path, capsys):
    assert main(["export", str(run / "whole"), str(tmp_path / "out"), "--formats", "torch"]) == 0
    assert "generator.pt2" in capsys.readouterr().out
    card = (tmp_path / "out/README.md").read_text()
    assert "All clips of the graphs `generator.*` move alike" in card
    assert f"samples.reshape(len(samples), {FRAMES}, 1, " in card
    assert f"Samples are clips of {FRAMES} frames" in card


def test_other_families_make_no_films(small_shards, tmp_path, capsys):
    assert main(["train", *TINY, f"data.shards={small_shards}", f"run.dir={tmp_path / 'run'}", "run.kimg=0.008"]) == 0
    assert main(["generate", str(tmp_path / "run"), "--frames", "9", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "this generator makes no clips of any length" in capsys.readouterr().err


def test_stylegan2_trains_on_clips_of_fixed_length(clip_shards, tmp_path):
    assert main(["train", *TINY, f"data.shards={clip_shards}", f"run.dir={tmp_path / 'run'}", "run.kimg=0.008"]) == 0
    with Image.open(tmp_path / "run/samples/nimg-00000008.gif") as moving:
        assert moving.n_frames == FRAMES


def test_motion_noise_is_addressed():
    g, _, _ = networks()
    index, times = torch.tensor([5]), torch.zeros(1, 1, dtype=torch.float64)
    noise = randomness.normal(9, "some.motion", index, (g.motion.noises(3.0 + g.motion.start), g.motion.z_dim))
    start = randomness.uniform(9, "some.start", index).double() * g.motion.start
    assert torch.allclose(g.draw_motion(9, "some", index, times, 3.0), g.motion(noise, start), atol=1e-9)
