"""Held-out images: which ones a step has, what is measured of them, and that nothing is learned from them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import trained
from metrics_reader import read
from PIL import Image
from tape import FORBIDDEN, ONLY_ON_CPUS, TapeRecorder
from tiny_states import contents, new_state, save

from stylegan_dist.cli import main
from stylegan_dist.config import Config, load_config
from stylegan_dist.data.index import load_index
from stylegan_dist.data.readers import ReaderOptions
from stylegan_dist.engine.graphs import GraphLearner
from stylegan_dist.kinds.image import ImageOptions
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.ranks import ALONE
from stylegan_dist.training.held_out import HeldOut, held_out_plan
from stylegan_dist.training.loop import train_networks
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.timing import PhaseTimer

BATCH = 4
TINY = ("augment.pipe=bgc", "augment.held_out=elsewhere", "augment.kimg=0.1", "data.conditional=false",
        "discriminator.mbstd_group=2", "loss.path_length_interval=2", "loss.penalty_interval=2", "run.batch_gpu=4")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of 8 pixels that are not in `small_shards`, in its classes."""
    folder = tmp_path_factory.mktemp("others")
    for i in range(30):
        path = folder / "images" / f"class{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), (8 * i, 255 - 8 * i, 128), np.uint8)).save(path)
    pack(folder / "images", folder / "shards", PackOptions(ImageOptions(resolution=8), labels="folders", workers=1))
    return folder / "shards"


def config_of(shards: Path, others: Path) -> Config:
    return load_config(None, [f"data.shards={shards}", f"augment.held_out={others}", "run.batch=8", "data.block=4"])


def batches(config: Config, others: Path, nimg: int, steps: int, world_size: int = 1, rank: int = 0) -> dict[int, np.ndarray]:
    """Step -> its held-out images, of a rank of a run that continues at `nimg` images."""
    held_out = HeldOut(load_index(others), held_out_plan(config, nimg, world_size, rank), ReaderOptions(workers=0), None)
    found = {}
    for step in range(nimg // 8, nimg // 8 + steps):
        assert held_out.due(8 * step) == (step % 4 == 3)
        if (batch := held_out.after(8 * step)) is not None:
            found[step] = batch["sample"].numpy().copy()
    held_out.stream.close()
    return found


def test_they_follow_from_the_images_seen(small_shards: Path, others: Path):
    config = config_of(small_shards, others)
    straight = batches(config, others, 0, 32)
    assert sorted(straight) == [3, 7, 11, 15, 19, 23, 27, 31]
    seen = np.concatenate(list(straight.values())[:3])[:, 0, 0, 0]
    assert len(set(seen.tolist())) == 24, "each once in an epoch"
    for begin in (3, 4, 15, 22):
        later = batches(config, others, 8 * begin, 32 - begin)
        assert later.keys() == {step for step in straight if step >= begin}
        assert all(np.array_equal(images, straight[step]) for step, images in later.items())
    ranks = [batches(config, others, 8 * 4, 8, 2, rank) for rank in (0, 1)]
    assert all(np.array_equal(np.concatenate([rank[step] for rank in ranks]), straight[step]) for step in (7, 11))
    held_out = HeldOut(load_index(others), held_out_plan(config, 0), ReaderOptions(workers=0), None)
    held_out.after(8 * 3)
    held_out.go_to(8 * 2)
    assert np.array_equal(held_out.after(8 * 3)["sample"], straight[3])
    held_out.stream.close()


def batch_at(nimg: int, held_out: bool = True) -> MicroBatch:
    draw = torch.Generator().manual_seed(nimg)
    images, more = (torch.rand(BATCH, 3, 8, 8, generator=draw) * 2 - 1 for _ in range(2))
    due = held_out and nimg // BATCH % 4 == 3
    return MicroBatch(images, None, torch.arange(nimg, nimg + BATCH), more if due else None)


def halves(part: MicroBatch) -> list[MicroBatch]:
    return [MicroBatch(part.images[s], None, part.index[s], None if part.held_out is None else part.held_out[s])
            for s in (slice(0, 2), slice(2, 4))]


def train(state: TrainState, steps: int, held_out: bool = True, cut: bool = False) -> None:
    for _ in range(steps):
        part = batch_at(state.nimg, held_out)
        train_networks(state, halves(part) if cut else [part], torch.zeros(()), PhaseTimer(torch.device("cpu")), print)


def everything(state: TrainState) -> dict[str, bytes]:
    return contents(state) | {name: value.numpy().tobytes() for name, value in state.objective.running.items()}


def test_nothing_is_learned_from_them():
    with_, without = new_state(*TINY, "augment.p=0.5"), new_state(*TINY, "augment.p=0.5")
    train(with_, 8)
    train(without, 8, held_out=False)
    assert contents(with_) == contents(without)
    assert "logits/held_out" in with_.statistics.take()
    assert "logits/held_out" not in without.statistics.take()


def test_p_follows_them_over_a_restart_and_does_not_depend_on_micro_batches(tmp_path: Path):
    state = new_state(*TINY, "augment.target=0")
    p = state.objective.running["augment_p"].fill_(0.5)
    for step in range(12):
        before = p.item()
        train(state, 1)
        if step % 4 == 3:
            mean = state.statistics.take()
            excess = (mean["logits/real"] - mean["logits/held_out"]) / max(mean["logits/real"] - mean["logits/fake"], 1e-8)
            assert p.item() - before == pytest.approx(math.copysign(4 * BATCH / 100, excess))
        else:
            assert p.item() == before
            state.statistics.take()
    straight, first, cut = (new_state(*TINY, "augment.target=0") for _ in range(3))
    train(straight, 10)
    train(first, 6)
    second = new_state(*TINY, "augment.target=0")
    second.restore(save(first, tmp_path))
    train(second, 4)
    assert everything(second) == everything(straight)
    train(cut, 10, cut=True)
    assert torch.equal(cut.objective.running["augment_p"], straight.objective.running["augment_p"])
    ours, theirs = cut.statistics.take(), straight.statistics.take()
    assert ours["logits/held_out"] == pytest.approx(theirs["logits/held_out"], rel=1e-3)


def test_recorded_phases_read_those_of_now():
    plain, recorded = new_state(*TINY), new_state(*TINY)
    recorder = TapeRecorder([name for name in FORBIDDEN if name not in ONLY_ON_CPUS])
    for name, network in recorded.networks.items():
        recorded.learners[name] = GraphLearner(network, recorded.optimizers[name], ALONE, recorder)
    for state in (plain, recorded):
        train(state, 20)  # five looks, of which the last two are replayed
    assert everything(plain) == everything(recorded)
    assert plain.statistics.take() == recorded.statistics.take()


@pytest.mark.slow
@pytest.mark.full
def test_a_run_on_changing_ranks_equals_one(small_shards: Path, others: Path, tmp_path: Path):
    """Conditional, with readers of their own; a restart in the middle of four steps."""
    calm = ("optim.g.eps=1e-2", "optim.d.eps=1e-2", "optim.g.lr=0.001", "optim.d.lr=0.001", "data.workers=1",
            "augment.pipe=bgc", "augment.kimg=0.2", "augment.target=0", f"augment.held_out={small_shards}")
    one, changing = tmp_path / "one", tmp_path / "changing"
    said = trained(others, one, "run.kimg=0.128", *calm).stdout
    assert "bgc, p controlled: r_v to 0" in said
    for kimg, processes in (("0.048", 2), ("0.128", 1)):
        trained(others, changing, f"run.kimg={kimg}", *calm, processes=processes)
    expected, actual = read(one / "metrics.jsonl"), read(changing / "metrics.jsonl")
    assert [number for number, record in enumerate(expected) if "augment/r_v" in record] == [3, 7, 11, 15]
    assert len({record["augment/p"] for record in expected}) > 1
    for a, b in zip(expected, actual, strict=True):
        assert a["augment/p"] == b["augment/p"]
        for name in ("logits/held_out", "augment/r_v"):
            assert b.get(name) == (None if a.get(name) is None else pytest.approx(a[name], rel=1e-3, abs=1e-4))
    real, fake, held_out = (expected[3][f"logits/{name}"] for name in ("real", "fake", "held_out"))
    assert expected[3]["augment/r_v"] == pytest.approx((real - held_out) / max(real - fake, 1e-8), rel=1e-6)


def test_what_does_not_fit_is_refused_before_anything_starts(small_shards: Path, labelled_shards: Path, others: Path,
                                                              tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def said(*overrides: str) -> str:
        code = main(["train", f"data.shards={small_shards}", f"run.dir={tmp_path / 'run'}", "augment.pipe=bgc",
                     "generator.channel_max=8", "discriminator.channel_max=8", "--dry-run", *overrides])
        shown = capsys.readouterr()
        return shown.out if code == 0 else shown.err

    assert "r_v to 0.5" in said(f"augment.held_out={others}")
    for overrides, expected in (
        ([f"augment.held_out={small_shards}"], "is the data that is trained on"),
        ([f"augment.held_out={labelled_shards}"], r"does not fit .* (resolution 16, not 8)"),
        ([f"augment.held_out={tmp_path}"], "index.json"),
        (["augment.controller=r_v"], "needs held-out images"),
        ([f"augment.held_out={others}", "loss.adversarial=relativistic"], "compares mean logits"),
    ):
        text = said(*overrides)
        assert all(piece in text for piece in expected.split(" .* ")), text
        assert text.count("\n") == 1
