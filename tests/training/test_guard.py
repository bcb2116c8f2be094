"""What the guard counts, where it goes back to, and what it puts aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from saving import prune
from tiny_states import contents, new_state, save, save_small, step

from stylegan_dist import randomness
from stylegan_dist.config.schema import CheckpointConfig
from stylegan_dist.errors import InputError
from stylegan_dist.training.checkpoint import (
    list_checkpoints,
    newest_healthy,
    newest_whole_checkpoint,
    prune_checkpoints,
    put_aside,
)
from stylegan_dist.training.saved import load_state
from stylegan_dist.training.statistics import WINDOW, BrokenSteps

GOOD, BAD = torch.tensor(False), torch.tensor(True)
CPU = torch.device("cpu")


def test_the_last_steps_are_counted():
    steps = BrokenSteps(CPU)
    for number in range(WINDOW + 5):
        steps.add([GOOD, BAD if number in (4, 5, 50, 104) else GOOD])
    assert steps.count() == 3  # 4 is too long ago
    assert steps.facts() == [99, 54, 0]
    other = BrokenSteps(CPU)
    other.restore(steps.facts())
    for one in (steps, other):
        one.add([GOOD])
    assert steps.facts() == other.facts() == [55, 1]
    other.restore([])
    assert other.count() == 0


def damage(folder: Path) -> None:
    (folder / "g.safetensors").write_bytes(b"")


def test_the_newest_healthy_checkpoint_is_found(tmp_path: Path):
    assert newest_healthy(tmp_path, 0.08, 8) == 0
    for nimg, bad in ((80, []), (160, []), (200, []), (240, [3]), (320, [])):
        save_small(tmp_path, nimg, broken_steps=bad)
    damage(save_small(tmp_path, 400))
    assert newest_healthy(tmp_path, 0.08, 8) == 320
    damage(dict(list_checkpoints(tmp_path))[320])
    assert newest_healthy(tmp_path, 0.08, 8) == 160  # 200 was saved at a stop
    for nimg in (80, 160):
        damage(dict(list_checkpoints(tmp_path))[nimg])
    assert newest_healthy(tmp_path, 0.08, 8) == 200
    damage(dict(list_checkpoints(tmp_path))[200])
    assert newest_healthy(tmp_path, 0.08, 8) == 0


def test_newer_checkpoints_are_put_aside(tmp_path: Path):
    for nimg in (80, 160, 240):
        save_small(tmp_path, nimg)
    put_aside(tmp_path, beyond=80)
    assert newest_whole_checkpoint(tmp_path) == (80, [])
    save_small(tmp_path, 160, segment=7)
    put_aside(tmp_path, beyond=80)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["abandoned-nimg-00000160", "abandoned-nimg-00000240", "nimg-00000080"]
    assert json.loads((tmp_path / "checkpoints/abandoned-nimg-00000160/state.json").read_text())["segment"] == 7


def test_the_newest_healthy_checkpoint_is_not_pruned(tmp_path: Path):
    for nimg, bad in ((80, []), (160, []), (240, [0]), (320, [0, 5])):
        save_small(tmp_path, nimg, broken_steps=bad)
    prune(tmp_path, 1, 0)
    assert [nimg for nimg, _ in list_checkpoints(tmp_path)] == [160, 320]
    save_small(tmp_path, 400)
    prune(tmp_path, 1, 0)
    assert [nimg for nimg, _ in list_checkpoints(tmp_path)] == [400]


def test_where_a_run_goes_back_to_does_not_depend_on_where_it_was_stopped(tmp_path: Path):
    """As many checkpoints were saved at stops as are kept."""
    for nimg, bad in ((80, []), (88, []), (96, []), (104, []), (112, [0])):
        save_small(tmp_path, nimg, broken_steps=bad)
        prune_checkpoints(tmp_path, CheckpointConfig(keep=2, every_kimg=0.08), batch=8)
    assert [nimg for nimg, _ in list_checkpoints(tmp_path)] == [80, 104, 112]
    assert newest_healthy(tmp_path, 0.08, 8) == 80


@pytest.mark.parametrize("facts", [
    {"broken_steps": [WINDOW]}, {"broken_steps": [-1]}, {"broken_steps": "1"}, {"rollbacks": [{"at": 8, "to": 4}]},
    {"rollbacks": [{"at": -8, "to": 4, "reason": ""}]}, {"rollbacks": 1},
])
def test_a_damaged_record_is_refused(facts: dict, tmp_path: Path):
    folder = save_small(tmp_path, 80, **facts)
    with pytest.raises(InputError, match=next(iter(facts))):
        load_state(folder)


def test_a_checkpoint_without_a_record_is_healthy(tmp_path: Path):
    state = load_state(save_small(tmp_path, 80))
    assert (state.broken_steps, state.rollbacks) == ([], [])


def test_going_back_restores_everything_but_draws_and_rates(tmp_path: Path):
    state = new_state("guard.lr_factor=0.5", "optim.d.lr=0.01")
    for seed in range(2):
        step(state, seed)
    state.broken_steps.add([BAD])
    folder, before, segment = save(state, tmp_path), contents(state), state.segment
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in state.optimizers.items()}
    step(state, 2)
    for count in (1, 2):
        state.nimg = 100 * count
        state.go_back(folder, "a reason")
        assert contents(state) == before
        assert (state.nimg, state.segment) == (8, segment)
        assert state.broken_steps.facts() == [0]
        assert [(one.at, one.to) for one in state.rollbacks] == [(100, 8), (200, 8)][:count]
        assert state.objective.seed == randomness.seed_after(0, count)
        for name, optimizer in state.optimizers.items():
            assert optimizer.param_groups[0]["lr"] == rates[name] / 2**count
    (tmp_path / "later").mkdir()
    later = save(state, tmp_path / "later")
    other = new_state("guard.lr_factor=0.5", "optim.d.lr=0.01")
    other.restore(later)
    assert (other.rollbacks, other.objective.seed) == (state.rollbacks, state.objective.seed)
    assert other.optimizers["d"].param_groups[0]["lr"] == rates["d"] / 4
    other.restore(folder)  # of before
    assert (other.rollbacks, other.objective.seed) == ([], 0)
    assert other.optimizers["d"].param_groups[0]["lr"] == rates["d"]


def test_a_state_before_its_first_update_can_be_continued(tmp_path: Path):
    """All updates may have been skipped."""
    state = new_state()
    state.nimg = 4
    other = new_state()
    step(other, 0)
    other.restore(save(state, tmp_path))
    assert contents(other) == contents(state)


def test_seeds_after_roll_backs_differ():
    assert randomness.seed_after(7, 0) == 7
    assert len({randomness.seed_after(seed, count) for seed in (0, 7) for count in range(50)}) == 100
