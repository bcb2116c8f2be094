"""Augmentation in the phases of a training: what is drawn for whom, shares of micro-batches, penalties, saved state."""

from __future__ import annotations

from pathlib import Path

import augment_reference as reference
import numpy as np
import pytest
import torch
from tape import FORBIDDEN, ONLY_ON_CPUS, TapeRecorder
from tiny_states import INDEX, config_with, contents, new_state, save
from torch import Tensor

from stylegan_dist.augment.color import color
from stylegan_dist.augment.draws import Draws
from stylegan_dist.augment.geometry import blit, geom
from stylegan_dist.augment.pipe import NORMALS, UNIFORMS
from stylegan_dist.engine.graphs import GraphLearner
from stylegan_dist.errors import InputError
from stylegan_dist.objective.penalties import gradient_penalty
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.ranks import ALONE
from stylegan_dist.training.loop import train_networks
from stylegan_dist.training.state import TrainState
from stylegan_dist.training.timing import PhaseTimer

BATCH = 4
ADA = ("augment.pipe=bgc", "augment.p=ada", "augment.kimg=0.1", "augment.target=0", "data.conditional=false",
       "discriminator.mbstd_group=2", "loss.path_length_interval=2", "loss.penalty_interval=2", "loss.r1_gamma=1",
       "loss.r2_gamma=1", "run.batch_gpu=4")


def batch_at(nimg: int) -> MicroBatch:
    images = torch.rand(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(nimg)) * 2 - 1
    return MicroBatch(images, None, torch.arange(nimg, nimg + BATCH))


def halves(part: MicroBatch) -> list[MicroBatch]:
    return [MicroBatch(part.images[s], None, part.index[s]) for s in (slice(0, 2), slice(2, 4))]


def train(state: TrainState, steps: int, cut: bool = False) -> None:
    for _ in range(steps):
        part = batch_at(state.nimg)
        train_networks(state, halves(part) if cut else [part], torch.zeros(()), PhaseTimer(torch.device("cpu")), print)


def everything(state: TrainState) -> dict[str, bytes]:
    running = {name: value.numpy().tobytes() for name, value in state.objective.running.items()}
    return contents(state) | running


def seen_by_d(state: TrainState, phase: str, part: MicroBatch) -> list[Tensor]:
    """What the discriminator was shown in a phase."""
    seen: list[Tensor] = []
    hook = state.discriminator.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    getattr(state.objective, phase)(part)
    hook.remove()
    return seen


def test_resumed_equals_straight(tmp_path: Path):
    straight, first = new_state(*ADA), new_state(*ADA)
    train(straight, 10)
    train(first, 6)  # in the middle of the controller's four steps
    second = new_state(*ADA)
    second.restore(save(first, tmp_path))
    train(second, 4)
    assert everything(second) == everything(straight)
    assert straight.objective.now()["augment/p"] > 0
    assert straight.objective.running["augment_steps"] == 2


def test_switched_on_for_a_run_that_had_none(tmp_path: Path):
    plain = new_state("data.conditional=false")
    train(plain, 2)
    assert plain.objective.running.keys() == {"path_mean"}
    assert "augment/p" not in plain.objective.now()
    adaptive = new_state(*ADA)
    adaptive.restore(save(plain, tmp_path))
    assert adaptive.objective.running["augment_p"] == 0


def test_p_does_not_depend_on_micro_batches():
    whole, cut = new_state(*ADA, "augment.target=0.1"), new_state(*ADA, "augment.target=0.1")
    train(whole, 6)
    train(cut, 6, cut=True)
    for name in ("augment_p", "augment_signs", "augment_steps"):
        assert torch.equal(whole.objective.running[name], cut.objective.running[name]), name


def test_shares_of_micro_batches_add_up():
    state = new_state(*ADA[:1], "augment.p=0.8", *ADA[4:])
    for phase in state.phases:
        network, results = state.networks[phase.network], []
        for parts in ([batch_at(0)], halves(batch_at(0))):
            network.zero_grad(set_to_none=True)
            total = torch.zeros(())
            for part in parts:
                for loss in phase.losses:
                    share = loss(part).share
                    share.backward()
                    total += share.detach()
            results.append((total, [p.grad.clone() for p in network.parameters() if p.grad is not None]))
        (a, one), (b, other) = results
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        largest = max(float(g.abs().max()) for g in one)
        assert max(float((x - y).abs().max()) for x, y in zip(one, other, strict=True)) < 1e-4 * largest


def test_reals_and_fakes_of_each_phase_have_draws_of_their_own():
    """The same images for all: what D is shown differs by phase and side, and is the same again."""
    state, part = new_state(*ADA[:1], "augment.p=1", *ADA[4:]), batch_at(0)
    state.objective.generate = lambda *_: (part.images, torch.zeros(BATCH, 1, 8))
    shown = {phase: seen_by_d(state, phase, part) for phase in ("g_main", "d_main", "d_penalty")}
    assert [len(images) for images in shown.values()] == [1, 2, 2]
    flat = [part.images, *(images for phase in shown.values() for images in phase)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(flat) for b in flat[:i])
    again = seen_by_d(state, "d_main", part)
    assert all(torch.equal(a, b) for a, b in zip(again, shown["d_main"], strict=True))


def test_both_evaluations_of_the_approximate_penalty_have_the_same_draws():
    """The pipe is affine, so that the difference of what D sees is the augmented noise, as small as sigma."""
    state = new_state(*ADA[:1], "augment.p=1", *ADA[4:], "loss.penalty=approximate", "loss.penalty_sigma=0.001")
    clean, disturbed, *_ = seen_by_d(state, "d_penalty", batch_at(0))
    assert 0 < (clean - disturbed).abs().max() < 0.1


def test_r1_is_taken_through_the_pipe():
    """For D(x) = a . augmented(x) it is |A^T a|^2 with the matrix of the pipe, by the unaugmented image."""
    state = new_state(*ADA[:1], "augment.p=1", *ADA[4:])
    x = batch_at(0).images[:, :, :4, :4].double().requires_grad_()
    index, p = torch.arange(BATCH), torch.tensor(1.0).double()
    a = torch.randn(48, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    shown = state.objective.augmentation(x, 0, "d_penalty.augment.real", index, p)
    penalty = gradient_penalty(shown.flatten(1) @ a, x)
    draws = Draws(0, "d_penalty.augment.real", index, x, UNIFORMS, NORMALS)
    inverse, colors = (blit(draws, p, 4) @ geom(draws, p, 4)).numpy(), color(draws, p)[:, :3, :3]
    for n in range(2):
        moved = reference.matrix_of(lambda image, n=n: reference.warp(image, inverse[n]), (1, 4, 4))
        matrix = torch.from_numpy(np.kron(colors[n].numpy(), moved.numpy()))
        expected = (matrix.T @ a).square().sum()
        torch.testing.assert_close(penalty[n], expected, rtol=1e-6, atol=0)
        ours, = torch.autograd.grad(penalty[n], a, retain_graph=True)
        theirs, = torch.autograd.grad(expected, a)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_recorded_phases_see_the_p_of_now():
    """A graph holds where p is, not its value; and nothing in augmentation makes the host wait."""
    plain, recorded = new_state(*ADA), new_state(*ADA)
    recorder = TapeRecorder([name for name in FORBIDDEN if name not in ONLY_ON_CPUS])
    for name, network in recorded.networks.items():
        recorded.learners[name] = GraphLearner(network, recorded.optimizers[name], ALONE, recorder)
    for state in (plain, recorded):
        train(state, 10)
    assert recorder.replays > 8
    assert everything(plain) == everything(recorded)


def test_a_scheduled_p_moves():
    state = new_state("augment.pipe=bg", "augment.p={linear: [0.2, 0.6], until_kimg: 0.016}", *ADA[4:])
    train(state, 3)  # the last one after 8 of 16 images
    assert state.objective.now()["augment/p"].item() == pytest.approx(0.4)


def test_losses_without_a_fixed_zero_need_a_fixed_p():
    for loss in ("relativistic", "wasserstein"):
        with pytest.raises(InputError, match="set a fixed number"):
            config_with("augment.pipe=bg", f"loss.adversarial={loss}")
        assert config_with("augment.pipe=bg", "augment.p=0.5", f"loss.adversarial={loss}")
    assert INDEX.channels == 3
