"""Scores of the checkpoints of a run: the same whatever else happens, never twice, and of weights that are still there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import TINY_STYLEGAN3, trained
from saving import prune
from small_features import small_features

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation import evaluate as evaluating
from stylegan_dist.evaluation import reals, watch
from stylegan_dist.evaluation.evaluate import EvaluateOptions, Evaluator
from stylegan_dist.evaluation.record import NAME, alone, read_evaluations
from stylegan_dist.evaluation.samples import GeneratedSamples
from stylegan_dist.features.network import Taught
from stylegan_dist.kinds import Image
from stylegan_dist.kinds.scores import Measured, SampleMetric
from stylegan_dist.ranks import ALONE
from stylegan_dist.scores_file import Score
from stylegan_dist.training.best import Best, read_best
from stylegan_dist.training.checkpoint import list_checkpoints, put_aside
from stylegan_dist.training.pin import PIN_SECONDS, pinned
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.snapshot import find_checkpoint, load_generator

OPTIONS = EvaluateOptions(count=70, metrics=("fd", "kid", "pr", "is"))
CHECKPOINTS = [80, 160, 240]


@pytest.fixture(scope="module")
def trained_run(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("evaluated") / "run"
    trained(small_shards, run, "run.kimg=0.24")
    return run


@pytest.fixture
def run(trained_run: Path, tmp_path: Path, monkeypatch) -> Path:
    """Its copy, and a feature network that takes no time. Nothing is kept from one test for the next."""
    monkeypatch.setattr(evaluating, "open_features", lambda name, device: small_features(device))
    monkeypatch.setattr(reals, "user_folder", lambda name: tmp_path)
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


def evaluator(run: Path, options: EvaluateOptions = OPTIONS) -> Evaluator:
    return Evaluator(run, options, ALONE, lambda text: None)


def killed_while_watching(run: Path) -> int:
    """The exit code of a process that watches a run, and is killed when it has scored one checkpoint.

    A new process: one that is forked from this one has none of the threads that PyTorch counts on.
    """
    return subprocess.run([sys.executable, __file__, run], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                          timeout=600, check=False).returncode


def scores(run: Path) -> list[tuple]:
    return sorted((one.nimg, one.digest, json.dumps({name: vars(score) for name, score in one.scores.items()}))
                  for one in read_evaluations(run))


def test_a_score_is_the_same_again_and_from_kept_features(run: Path):
    results = []
    for _ in range(2):
        found = evaluator(run).evaluate(240)
        results.append(found.scores)
        assert found.scores.keys() == {f"{name}_small" for name in ("fd", "kid", "precision", "recall", "density", "coverage",
                                                                     "is")}
        assert len(list(run.parent.glob("*.safetensors"))) == 1  # features of the real samples
    assert results[0] == results[1]
    assert len(read_evaluations(run)) == 1
    assert found.scores["fd_small"].floor > 0
    assert found.scores["kid_small"].error > 0
    for option in ({"seed": 1}, {"count": 69}):
        assert evaluator(run, replace(OPTIONS, **option)).evaluate(240).scores != found.scores
    assert len(read_evaluations(run)) == 3


def test_accuracy_needs_a_network_that_has_learnt_these_classes(run: Path, monkeypatch):
    accuracy = replace(OPTIONS, metrics=("accuracy",))
    with pytest.raises(InputError, match="has learnt others"):
        evaluator(run, accuracy)
    network = small_features()
    monkeypatch.setattr(evaluating, "open_features", lambda name, device: network)
    network.taught, network.classes = Taught("x", 0.5, Image()), 4
    with pytest.raises(InputError, match="has learnt 4 classes, and the real samples have 3"):
        evaluator(run, accuracy)


def test_real_samples_in_place_of_generated_ones_reach_the_floor(run: Path, monkeypatch):
    """The path from shards to scores: the first 30 samples of the set against all 60."""
    one = evaluator(run)
    real = one._reals()
    monkeypatch.setattr(evaluating, "gather_rows", lambda count, *more: real.features[:30])
    found = one.evaluate(240)
    assert found.scores["precision_small"].value == 1
    assert found.scores["fd_small"].value < found.scores["fd_small"].floor


class Brightness(SampleMetric):
    about, scores, most_real = "means of images, and their greatest value", ("mean", "most"), 50

    def width(self, resolution, channels):
        return 2

    def rows(self, values):
        return torch.stack([values.mean((1, 2, 3)), values.amax((1, 2, 3))], 1)

    def measure(self, real, generated):
        assert len(real) == self.most_real
        return {"most": Measured(float(generated[:, 1].max()), floor=1.0, lower_is_better=False),
                "mean": Measured(float(generated[:, 0].mean()), 0.5, float(real[:, 0].mean()))}


def test_a_kind_of_samples_has_scores_of_its_own(run: Path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "metrics", lambda self: {"brightness": Brightness()})
    both = evaluator(run, EvaluateOptions(count=40, metrics=("brightness", "kid"))).evaluate(240)
    assert list(both.scores) == ["mean", "most", "kid_small"]
    assert read_best(run).metric == "mean"
    monkeypatch.setattr(evaluating, "open_features", None)  # a network is not asked for
    alone = evaluator(run, EvaluateOptions(count=40, metrics=("auto",))).evaluate(240)
    assert alone.scores == {name: both.scores[name] for name in ("mean", "most")}
    snapshot = load_generator(run, torch.device("cpu"), 240)
    counts = load_index(read_run_config(run).data.shards).class_counts
    samples = GeneratedSamples(snapshot.generator, 0, counts)
    values = torch.cat([samples.values(torch.arange(*ends)) for ends in ((0, 32), (32, 40))])
    expected = values.mean((1, 2, 3)).mean().item()
    assert (alone.scores["mean"].value, alone.scores["mean"].error) == (pytest.approx(expected, rel=1e-5), 0.5)
    assert alone.scores["most"] == Score(values.max().item(), None, 1.0, False)
    other = evaluator(run, EvaluateOptions(count=40, metrics=("brightness",)))
    monkeypatch.setattr(Brightness, "common", property(lambda self: self is other.own["brightness"]))
    with pytest.raises(InputError, match="give --shards of the form that it was trained on"):
        other.evaluate(160)
    assert main(["evaluate", str(run), "--metrics", "brightness,sharpness"]) == 2
    assert "there is no sharpness; give some of brightness, fd, " in capsys.readouterr().err


def test_watching_scores_all_and_never_twice_and_goes_on_after_a_kill(run: Path):
    told: list[int] = []
    watch.watch(evaluator(run), lambda found: told.append(found.nimg))
    assert told == CHECKPOINTS[::-1]  # the newest first
    straight, file = scores(run), (run / NAME).read_bytes()
    watch.watch(evaluator(run), lambda found: told.append(found.nimg))
    assert told == CHECKPOINTS[::-1]
    assert (run / NAME).read_bytes() == file
    (run / NAME).unlink()
    assert killed_while_watching(run) == -signal.SIGKILL
    assert [one.nimg for one in read_evaluations(run)] == [240]
    with open(run / NAME, "a") as damaged:
        damaged.write('{"version": 1, "nim\n')
    watch.watch(evaluator(run), lambda found: None)
    assert scores(run) == straight


def test_the_best_checkpoint_stays_and_can_be_named(run: Path):
    watch.watch(evaluator(run), lambda found: None)
    values = {one.nimg: one.scores["fd_small"].value for one in read_evaluations(run)}
    best = min(values, key=values.get)
    assert read_best(run).nimg == find_checkpoint(run, "best") == best
    prune(run, 1)
    assert {nimg for nimg, _ in list_checkpoints(run)} == {best, 240}
    with pytest.raises(InputError, match="there are: "):
        find_checkpoint(run, 8)


def test_the_best_is_that_of_scores_that_can_be_compared(run: Path):
    """Of other settings there may be lower numbers, and of this score higher ones that are gone."""
    for nimg in CHECKPOINTS:
        evaluator(run).evaluate(nimg)
        evaluator(run, replace(OPTIONS, seed=1)).evaluate(nimg)
    for options in (OPTIONS, replace(OPTIONS, seed=1), replace(OPTIONS, metrics=("pr",))):
        evaluator(run, options).evaluate(80)
        name = "precision_small" if options.metrics == ("pr",) else "fd_small"
        values = {one.nimg: one.scores[name].value for one in read_evaluations(run) if one.seed == options.seed}
        best = max(values, key=values.get) if name == "precision_small" else min(values, key=values.get)
        found = read_best(run)
        assert found == Best(name, best, values[best], found.settings)
        assert f"seed {options.seed}" in found.settings
    shutil.rmtree(run / f"checkpoints/nimg-{best:08d}")
    evaluator(run, replace(OPTIONS, metrics=("pr",))).evaluate(80 if best != 80 else 160)
    assert read_best(run).nimg != best


def test_scores_of_other_metrics_and_of_other_data_stand_beside(run: Path, labelled_shards: Path):
    first = evaluator(run, replace(OPTIONS, metrics=("fd", "classes"))).evaluate(240)
    second = evaluator(run, replace(OPTIONS, metrics=("kid",))).evaluate(240)
    (both,) = read_evaluations(run)
    assert both.scores == first.scores | second.scores
    assert both.by_class == first.by_class
    other = evaluator(run, replace(OPTIONS, shards=str(labelled_shards)))
    assert evaluator(run, replace(OPTIONS, metrics=("kid", "fd"))).known(240)
    assert other.known(240) is None
    other.evaluate(240)
    assert evaluator(run, replace(OPTIONS, metrics=("fd", "kid"))).known(240) == both
    assert len(read_evaluations(run)) == 2


def test_the_best_is_chosen_anew_from_what_is_known(run: Path):
    """After another first metric, and where best.json is damaged or was removed."""
    watch.watch(evaluator(run), lambda found: None)
    by_distance, by_kernel = (evaluator(run, replace(OPTIONS, metrics=metrics)) for metrics in (("fd",), ("kid", "fd")))
    values = {one.nimg: one.scores["kid_small"].value for one in read_evaluations(run)}
    assert by_kernel.unscored() == []
    assert "best so far" in by_kernel.best()
    best = read_best(run)
    assert best == Best("kid_small", min(values, key=values.get), min(values.values()), best.settings)
    for spoil in (lambda path: path.write_text("{"), Path.unlink):
        by_distance.best()
        before = read_best(run)
        assert before.metric == "fd_small"
        spoil(run / "checkpoints/best.json")
        by_distance.best()
        assert read_best(run) == before


def test_a_look_at_one_checkpoint_does_not_choose_the_best_anew(run: Path, capsys):
    for arguments in (["--all", "--count", "40"], ["--nimg", "80", "--count", "41"],
                      ["--nimg", "80", "--count", "42", "--metrics", "pr"]):
        assert main(["evaluate", str(run), "--device", "cpu", *arguments]) == 0
        assert "best so far: " in capsys.readouterr().out
        best = read_best(run)
        assert (best.metric, best.settings.partition(",")[0]) == ("fd_small", "40 samples")
    shutil.rmtree(run / f"checkpoints/nimg-{best.nimg:08d}")
    left = 80 if best.nimg != 80 else 160
    assert main(["evaluate", str(run), "--device", "cpu", "--nimg", str(left), "--count", "41"]) == 0
    assert read_best(run).settings.startswith("41 samples")  # the other one is gone


def test_equivariance_is_a_score_of_families_that_can_move_their_content(
        run: Path, small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"the metric eq_r needs .* and those of stylegan2 cannot"):
        evaluator(run, EvaluateOptions(count=33, metrics=("fd", "eq_r")))
    assert main(["train", *TINY_STYLEGAN3, "generator.family=stylegan3-r", f"data.shards={small_shards}",
                 f"run.dir={tmp_path / 'moving'}", "run.kimg=0.016"]) == 0
    with pytest.raises(InputError, match="too small"):
        evaluator(tmp_path / "moving", EvaluateOptions(count=2, metrics=("eq_r",))).evaluate(16)
    monkeypatch.setattr("stylegan_dist.metrics.equivariance.REACH", 2)  # images have 8 pixels
    found = evaluator(tmp_path / "moving", EvaluateOptions(count=33, metrics=("eq_t", "eq_t_frac", "eq_r"))).evaluate(16)
    assert list(found.scores) == ["eq_t", "eq_t_frac", "eq_r"]
    assert all(score.value > 10 and score.error > 0 and not score.lower_is_better for score in found.scores.values())
    assert [one.scores for one in read_evaluations(tmp_path / "moving")] == [found.scores]


def test_a_score_for_each_class(run: Path, capsys):
    found = evaluator(run, replace(OPTIONS, metrics=("classes", "fd"))).evaluate(240)
    assert len(found.by_class) == 3
    assert sum(one.generated for one in found.by_class) == 70
    assert [one.real for one in found.by_class] == [20, 20, 20]
    assert found.scores["fd_classes_small"].value == pytest.approx(sum(one.value for one in found.by_class) / 3)
    assert read_evaluations(run) == [found]
    worst = max(range(3), key=lambda label: found.by_class[label].value)
    assert f"classes with the largest Fréchet distances: {worst}: " in evaluating.describe(found)
    with pytest.raises(InputError, match="larger --count"):
        evaluator(run, replace(OPTIONS, metrics=("classes",), count=2)).evaluate(240)


def test_a_checkpoint_that_is_being_read_stays_for_a_while(run: Path):
    with pinned(run, 80):
        prune(run, 1)
        assert [nimg for nimg, _ in list_checkpoints(run)] == [80, 240]
        (pin,) = (run / "checkpoints").glob(".pin-*")
        old = os.stat(run / "status.json").st_mtime - PIN_SECONDS - 1  # its process has died
        os.utime(pin, (old, old))
        prune(run, 1)
        assert [nimg for nimg, _ in list_checkpoints(run)] == [240]
    assert not list((run / "checkpoints").glob(".pin-*"))


def test_a_checkpoint_that_is_gone_or_damaged_is_passed_over(run: Path):
    one, warned = evaluator(run), []
    shutil.rmtree(run / "checkpoints/nimg-00000080")
    assert one.unscored() == [160, 240]
    assert one.evaluate(80) is None
    os.truncate(run / "checkpoints/nimg-00000160/g_ema.safetensors", 100)
    one.say = warned.append
    watch.watch(one, lambda found: None)
    assert [found.nimg for found in read_evaluations(run)] == [240]
    assert any("160" in text for text in warned)


def test_after_a_roll_back_the_other_checkpoint_of_a_number_is_scored(run: Path):
    """The watcher passes over a damaged one, and not over what takes its place."""
    whole, checkpoint = run / "whole", run / "checkpoints/nimg-00000160"
    shutil.copytree(checkpoint, whole)
    manifest = checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    os.truncate(checkpoint / "g_ema.safetensors", 100)
    found = []

    def tell(one) -> None:
        found.append(one.nimg)
        if one.nimg == 80:
            shutil.rmtree(checkpoint)
            whole.rename(checkpoint)

    watch.watch(evaluator(run), tell)
    assert found == [240, 80, 160]


def test_a_checkpoint_that_the_run_goes_back_from_meanwhile_has_no_scores(run: Path, monkeypatch):
    one, said = evaluator(run), []
    one.say = said.append
    compute = evaluating.compute_scores

    def going_back(*arguments, **more):
        put_aside(run, 160)
        return compute(*arguments, **more)

    monkeypatch.setattr(evaluating, "compute_scores", going_back)
    assert one.evaluate(240) is None
    assert "gone back" in said[-1]
    assert not (run / NAME).exists()
    assert not (run / "evaluation").exists()
    assert one.evaluate(160).nimg == read_evaluations(run)[0].nimg == 160


def test_what_cannot_be_computed_is_said(run: Path, monkeypatch):
    with pytest.raises(InputError, match="too little memory"):
        evaluator(run, replace(OPTIONS, count=1 << 40)).evaluate(240)
    network = small_features(torch.device("cpu"))
    network.classes = 0
    monkeypatch.setattr(evaluating, "open_features", lambda name, device: network)
    with pytest.raises(InputError, match="classifies"):
        evaluator(run, replace(OPTIONS, metrics=("is",)))


def test_two_evaluators_at_once(run: Path):
    with alone(run), pytest.raises(InputError, match="another process evaluates"), alone(run):
        pass


def test_a_child_that_was_forked_meanwhile_does_not_keep_others_from_evaluating(run: Path):
    with alone(run):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with alone(run):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_pipe_in_place_of_the_scores_is_refused(run: Path):
    os.mkfifo(run / NAME)
    with pytest.raises(InputError, match="a pipe or a device"):
        read_evaluations(run)


def test_the_verb(run: Path, capsys):
    assert main(["evaluate", str(run), "--count", "40", "--device", "cpu", "--all", "--metrics", "kid"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("   ")[0] for line in said] == ["kimg 0.08", "kimg 0.16", "kimg 0.24", said[-1]]
    assert said[-1].startswith("best so far: ")
    assert "(kept)" in said[-1]
    assert (run / "evaluation/neighbours.png").is_file()
    file = (run / NAME).read_bytes()
    assert main(["evaluate", str(run), "--count", "40", "--device", "cpu", "--metrics", "kid"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{said[-2]}   (known before)", said[-1]]
    assert (run / NAME).read_bytes() == file  # nothing was computed again
    os.truncate(run / "checkpoints/nimg-00000080/g_ema.safetensors", 100)
    assert main(["evaluate", str(run), "--count", "41", "--device", "cpu", "--all", "--metrics", "kid"]) == 2
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("WARNING: the checkpoint at 80 images is passed over")
    assert [line.split("   ")[0] for line in said[1:3]] == ["kimg 0.16", "kimg 0.24"]
    before = set(run.parent.iterdir())
    assert main(["evaluate", str(run.parent), "--device", "cpu"]) == 2
    assert set(run.parent.iterdir()) == before
    assert "error: " in capsys.readouterr().err


if __name__ == "__main__":
    watched = Path(sys.argv[1])
    evaluating.open_features = lambda name, device: small_features(device)
    reals.user_folder = lambda name: watched.parent
    watch.watch(evaluator(watched), lambda found: os.kill(os.getpid(), signal.SIGKILL))
