"""Schedules reach optimizers, losses and the average, and a run that was interrupted in the middle of them goes on alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import TINY
from saving import assert_equal_tensors
from tiny_states import new_state, save

from stylegan_dist.cli import main
from stylegan_dist.config.schedules import Schedule
from stylegan_dist.errors import InputError

MOVING = (
    "optim.g.lr={cosine: [1e-2, 1e-3], until_kimg: 0.1}", "optim.g.betas=[0, {linear: [0.9, 0.99], until_kimg: 0.1}]",
    "optim.d.lr={linear: [1e-2, 1e-3], until_kimg: 0.1}", "loss.r1_gamma={cosine: [2, 0.5], until_kimg: 0.1}",
    "loss.r2_gamma={linear: [0, 1], until_kimg: 0.1}", "ema.rampup=0",
    "ema.half_life_kimg={cosine: [0, 0.05], until_kimg: 0.1}",
)


def groups(state):
    return {name: optimizer.param_groups[0] for name, optimizer in state.optimizers.items()}


def test_every_knob_is_set_from_the_images_seen():
    """StyleGAN2's lazy regularisers: an update more in 4 steps of G, and in 2 of D."""
    state = new_state(*MOVING, "loss.penalty_interval=2")
    for nimg in (0, 25, 50, 75, 100, 10_000):
        state.nimg = nimg
        state.follow_schedules()
        g, d = groups(state)["g"], groups(state)["d"]
        time = min(nimg / 100, 1)
        assert g["lr"] == pytest.approx(0.8 * Schedule("cosine", 1e-2, 1e-3, 0.1).at(nimg), rel=1e-12)
        assert g["betas"] == (0, pytest.approx((0.9 + 0.09 * time) ** 0.8, rel=1e-12))
        assert d["lr"] == pytest.approx(2 / 3 * (1e-2 - 9e-3 * time), rel=1e-12)
        assert d["betas"] == (0, 0.99 ** (2 / 3))
        weights = state.objective.weights
        assert weights["r1_gamma"].item() == Schedule("cosine", 2, 0.5, 0.1).at(nimg)
        assert weights["r2_gamma"].item() == pytest.approx(time, rel=1e-12)
        half_life = 1000 * Schedule("cosine", 0, 0.05, 0.1).at(nimg)
        assert state.ema.decay(nimg, 4) == (pytest.approx(0.5 ** (4 / half_life), rel=1e-12) if nimg else 0)


def test_weights_move_in_place():
    state = new_state(*MOVING)
    before = {name: weight.data_ptr() for name, weight in state.objective.weights.items()}
    state.nimg = 60
    state.follow_schedules()
    assert {name: weight.data_ptr() for name, weight in state.objective.weights.items()} == before


def test_a_constant_is_what_it_was():
    state = new_state("optim.g.lr=0.003", "optim.g.name=SGD", "optim.g.eps=auto")
    state.objective.set_weight("r1_gamma", 7.0)
    before = {name: {key: value for key, value in group.items() if key != "params"} for name, group in groups(state).items()}
    state.nimg = 1000
    state.follow_schedules()
    after = {name: {key: value for key, value in group.items() if key != "params"} for name, group in groups(state).items()}
    assert after == before
    assert state.objective.weights["r1_gamma"].item() == 7


def test_rates_of_a_run_that_has_gone_back_are_lower(tmp_path: Path):
    state = new_state(*MOVING, "guard.lr_factor=0.5")
    state.nimg = 60
    state.follow_schedules()
    rate = groups(state)["g"]["lr"]
    saved = save(state, tmp_path)
    state.nimg = 80
    state.follow_schedules()
    assert groups(state)["g"]["lr"] < rate
    state.go_back(saved, "a test")
    assert groups(state)["g"]["lr"] == rate / 2


@pytest.mark.parametrize(("overrides", "message"), [
    (("optim.g.betas=[0, {linear: [0.9, 1], until_kimg: 1}]",), r"optim\.g: torch\.optim\.Adam cannot train"),
    (("optim.d.name=SGD", "optim.d.betas=[0, {linear: [0.9, 0.99], until_kimg: 1}]", "optim.d.eps=auto"), r"optim\.d\.betas"),
])
def test_refused_at_either_end(overrides, message):
    with pytest.raises(InputError, match=message):
        new_state("optim.d.lr=0.1", *overrides)


def test_interrupted_in_the_middle_of_all_schedules(small_shards: Path, tmp_path: Path, capsys):
    def train(name: str, kimg: float, *more: str) -> None:
        assert main(["train", *TINY, "data.conditional=false", *MOVING, f"data.shards={small_shards}",
                     f"run.dir={tmp_path / name}", f"run.kimg={kimg}", *more]) == 0

    train("whole", 0.12)
    header = capsys.readouterr().out
    assert "optim.g.betas[1]: 0.9 to 0.99 in 0.1 kimg (linear)" in header
    assert "R1 gamma 2 to 0.5, R2 gamma 0 to 1" in header
    for kimg in (0.04, 0.064, 0.12):
        train("parts", kimg)
    last = "checkpoints/nimg-00000120"
    assert_equal_tensors(tmp_path / "whole" / last, tmp_path / "parts" / last)
    kept = ("loss/", "schedule/", "ema/", "nimg")
    records = [[{key: value for key, value in json.loads(line).items() if key.startswith(kept)}
                for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()] for run in ("whole", "parts")]
    assert records[0] == records[1]
    assert records[0][5]["schedule/optim.g.lr"] == Schedule("cosine", 1e-2, 1e-3, 0.1).at(40)
    assert records[0][5].keys() >= {f"schedule/{key}" for key in (
        "optim.g.betas[1]", "optim.d.lr", "loss.r1_gamma", "loss.r2_gamma", "ema.half_life_kimg")}

    capsys.readouterr()
    train("parts", 0.12, "optim.g.lr=0.001")
    assert "changed since the last start: optim.g.lr = 0.001 (was {'cosine': [0.01, 0.001], 'until_kimg': 0.1})" in (
        capsys.readouterr().out)
