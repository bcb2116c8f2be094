"""Scores of motion: against a definition, and clips with faults score worse than other real ones, in pixels and in features."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from clips import FRAMES, SIDE, circling, make_clips
from torch import Tensor

from stylegan_dist.cli import main
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.samples import is_of_another_form
from stylegan_dist.features.faults import FAULTS, with_fault
from stylegan_dist.features.own import RECORD
from stylegan_dist.features.registry import open_features
from stylegan_dist.kinds.clip import Clip
from stylegan_dist.kinds.film import FilmForm
from stylegan_dist.kinds.motion import LoopingMotion, Motion
from stylegan_dist.metrics import kernel_distance


def clips_of(numbers: range, frames: int = FRAMES) -> Tensor:
    """[N, frames, 1, SIDE, SIDE] in the range of networks."""
    return torch.from_numpy(np.stack([circling(number, frames) for number in numbers])).float()[:, :, None] / 127.5 - 1


def faulty(clips: Tensor, fault: str) -> Tensor:
    index = torch.arange(len(clips))
    return with_fault(clips, torch.full_like(index, FAULTS.index(fault)), 3, index)


def measured(real: Tensor, generated: Tensor, kind: type[Motion] = Motion) -> dict[str, float]:
    metric = kind(real.shape[1], 1)
    rows = [metric.rows(one.flatten(1, 2)) for one in (real, generated)]
    assert all(one.shape[1] == metric.width(SIDE, FRAMES) for one in rows)
    return {name: one.value for name, one in metric.measure(*rows).items()}


def test_faults_are_what_they_are_called():
    clips = torch.arange(24.0).view(3, 8, 1, 1, 1)
    assert torch.equal(faulty(clips, "none"), clips)
    shuffled, frozen, stuttering = (faulty(clips, fault).flatten(1) for fault in FAULTS[1:])
    assert torch.equal(shuffled.sort(1).values, clips.flatten(1))
    assert not torch.equal(shuffled, clips.flatten(1))
    assert (frozen == frozen[:, :1]).all()
    assert stuttering[1].tolist() == [8, 8, 10, 10, 12, 12, 14, 14]
    alone = with_fault(clips[2:], torch.tensor([1]), 3, torch.tensor([2]))
    assert torch.equal(alone.flatten(1), shuffled[2:])


def test_rows_are_the_differences_of_frames():
    clips = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64).float()
    rows = Motion(5, 3).rows(clips.flatten(1, 2)).double()
    x = clips.double().numpy()
    for n in range(2):
        for lag in range(1, 5):
            apart = [np.abs(x[n, t + lag] - x[n, t]) for t in range(5 - lag)]
            assert rows[n, lag - 1] == pytest.approx(np.mean(apart), rel=1e-5)
            assert rows[n, 4 + lag - 1] == pytest.approx(np.mean(np.square(apart)), rel=1e-5)
        assert rows[n, 8] == pytest.approx(x[n].var(0).mean(), rel=1e-5)
        assert rows[n, 9] == pytest.approx(np.abs(x[n, 4] - x[n, 0]).mean(), rel=1e-5)


def test_faults_score_worse_than_real_clips():
    real, other = clips_of(range(40), 16), clips_of(range(40, 80), 16)
    good = measured(real, other, LoopingMotion)
    assert good["motion_differences"] < 0.05
    assert good["motion_correlation"] < 0.02
    assert good["motion_speed"] == pytest.approx(1, abs=0.05)
    assert good["loop_jump"] == pytest.approx(1, abs=0.05)  # the data loops
    for fault in FAULTS[1:]:
        bad = measured(real, faulty(other, fault), LoopingMotion)
        for name in ("motion_differences", "motion_correlation"):
            assert bad[name] > 2 * good[name], (fault, name)
        assert bad["motion_speed"] > 1.1, fault
    half = clips_of(range(40, 80), 32)[:, :16]  # half a round: the ends are far apart
    assert measured(real, half, LoopingMotion)["loop_jump"] > 2
    with pytest.raises(InputError, match="use a larger --count"):
        measured(real[:1], other)


def test_only_clips_of_one_form_are_compared():
    assert Motion(16, 1).common == LoopingMotion(16, 1).common != Motion(8, 1).common
    assert Motion(16, 1).common != Motion(16, 3).common
    assert Motion(50, 1).common == Motion(60, 1).common  # the same lags


def test_a_network_of_other_clips_is_of_another_form():
    grey, colour = (Clip("uint8", (0.0,), (1.0,), film=FilmForm(*form, 25.0)) for form in ((12, 1), (4, 3)))
    assert is_of_another_form(grey, colour)  # both have 12 numbers for each pixel
    assert not is_of_another_form(grey, replace(grey, film=FilmForm(12, 1, 30.0)))


@pytest.mark.full
def test_features_of_motion(tmp_path, capsys):
    shards = make_clips(tmp_path, 60)
    out = tmp_path / "features"
    assert main(["train-features", str(shards), str(out), "--motion", "--kimg", "6", "--device", "cpu"]) == 0
    record = json.loads((out / RECORD).read_text())
    assert (record["learned"], record["classes"], record["channels"]) == ("motion", len(FAULTS), FRAMES)
    network = open_features(out, "cpu")
    assert network.name == f"motion_{record['sha256'][:8]}"

    def features(clips: Tensor) -> Tensor:
        return network(((clips + 1) * 127.5).round().to(torch.uint8).flatten(1, 2))

    real, other = clips_of(range(40)), clips_of(range(40, 80))
    right = [network.classify(features(faulty(other, fault))).argmax(1) == number for number, fault in enumerate(FAULTS)]
    assert torch.cat(right).float().mean() > 0.8
    good = kernel_distance(features(real), features(other)).value
    for fault in FAULTS[1:]:
        assert kernel_distance(features(real), features(faulty(other, fault))).value > 10 * max(good, 1e-4), fault
    capsys.readouterr()


def test_features_of_motion_need_clips(labelled_shards, tmp_path, capsys):
    assert main(["train-features", str(labelled_shards), str(tmp_path / "out"), "--motion", "--device", "cpu"]) == 2
    assert "holds images, and --motion needs clips: pack videos with --video" in capsys.readouterr().err
    assert math.isfinite(Motion(4, 1).measure(torch.rand(4, 8), torch.zeros(2, 8))["motion_differences"].value)
