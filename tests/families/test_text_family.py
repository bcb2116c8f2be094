"""The family of networks for text: networks against formulas, penalties, micro-batches, and a run from text to scores."""

from __future__ import annotations

import pytest
import reference
import torch
from launching import TINY_TEXT
from parts import gradients_in_parts
from small_families import batch_of, check_continued, index_of, with_random_networks
from small_text import WORDS, pack_lines
from torch import Tensor

from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.errors import InputError
from stylegan_dist.families.r3gan.objective import R3GanObjective
from stylegan_dist.families.text.networks import Discriminator, Generator
from stylegan_dist.kinds import Text
from stylegan_dist.kinds.array import TextForm
from stylegan_dist.networks.generator import SampleShape, Sampling
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.scores_file import read_evaluations
from stylegan_dist.training.build import build_generator
from stylegan_dist.training.rules import resolve

CPU = torch.device("cpu")
BATCH, CLASSES, SIDE = 8, 3, 8
KIND = Text("uint8", (0.0,), (1.0,), text=TextForm(" abcd", 6))
SMALL = ("generator.family=text", "generator.z_dim=9", "generator.choices=2", "generator.choice_of=3", "generator.class_dim=3",
         "generator.width=6", "discriminator.width=4", f"run.batch={BATCH}", "run.batch_gpu=8")


def resolved(*overrides: str, classes: int = 0):
    index = index_of(SIDE, classes, 1, "txt", kind=KIND)
    return resolve(load_config(None, ["data.shards=somewhere", *overrides]), index).config


def objective_of(*overrides: str, classes: int = 0) -> R3GanObjective:
    """Of networks with random weights, in float64."""
    config = resolved(*SMALL, *overrides, classes=classes)
    return with_random_networks(R3GanObjective, config, SampleShape(SIDE, 1, classes))


def real_of(classes: int = 0) -> MicroBatch:
    """Random lines."""
    places = torch.arange(BATCH * SIDE).view(BATCH, SIDE) * 7 % 5
    samples = torch.nn.functional.one_hot(places, SIDE).transpose(1, 2)[:, None].double()
    return batch_of(samples, classes)


def convolved(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """Of one line [in, T], position by position."""
    weight, length = layer.weight, x.shape[1]
    half = weight.shape[2] // 2
    columns = []
    for t in range(length):
        value = layer.bias
        for k in range(weight.shape[2]):
            if 0 <= t + k - half < length:
                value = value + weight[:, :, k] @ x[:, t + k - half]
        columns.append(value)
    return torch.stack(columns, 1)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def through_blocks(network: torch.nn.Module, x: Tensor) -> Tensor:
    for block in network.blocks:
        x = x + convolved(block.conv2, leaky(convolved(block.conv1, leaky(x))))
    return x


def written(g: Generator, z: Tensor, labels: Tensor | None) -> Tensor:
    """Of each latent by itself."""
    samples = torch.zeros(len(z), 1, SIDE, SIDE, dtype=torch.float64)
    for n in range(len(z)):
        x = torch.zeros(9, dtype=torch.float64)
        for group in range(2):
            x[3 * group + int(z[n, 3 * group:3 * group + 3].argmax())] = 3**0.5
        x[6:] = z[n, 6:]
        if labels is not None:
            x = torch.cat([x, g.embed.weight[:, labels[n]]])
        logits = convolved(g.out, through_blocks(g, (g.dense.weight @ x).view(-1, 6)))
        samples[n, 0, :5, :6] = logits.exp() / logits.exp().sum(0)
        samples[n, 0, 0, 6:] = 1
    return samples


def judged(d: Discriminator, samples: Tensor, labels: Tensor | None) -> Tensor:
    logits = []
    for n, sample in enumerate(samples):
        x = d.dense.weight @ leaky(through_blocks(d, convolved(d.conv, sample[0, :5, :6]))).flatten()
        logits.append(x[0] if labels is None else x @ d.embed.weight[:, labels[n]])
    return torch.stack(logits)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_networks_against_formulas(classes):
    objective = objective_of(classes=classes)
    g, d, real = objective.generator, objective.discriminator, real_of(classes)
    assert (g.symbols, g.length, d.symbols, d.length) == (5, 6, 5, 6)  # of the data
    z = g.draw(0, "x", real.index).double()
    with torch.no_grad():
        samples, expected = g(z, real.labels), written(g, z, real.labels)
        assert reference.difference(samples, expected) < 1e-12
        assert reference.difference(samples.sum(2), torch.ones(BATCH, 1, SIDE)) < 1e-12
        assert torch.equal(g.sample(0, "x", real.index, real.labels, Sampling()), g(g.draw(0, "x", real.index), real.labels))
        for each in (real.images, samples):
            assert reference.difference(d(each, real.labels), judged(d, each, real.labels)) < 1e-12


def test_the_game_with_both_penalties():
    """Losses and gradients, the penalties by differences of the logits in place of second derivatives."""
    objective = objective_of("loss.r1_gamma=0.7", "loss.r2_gamma=0.4")
    g, d, real = objective.generator, objective.discriminator, real_of()
    with torch.no_grad():
        fakes = written(g, g.draw(0, "d_main", real.index), None)
    (phase,) = (one for one in objective.phases() if one.network == "d")
    assert phase.second_order
    result = phase.losses[0](real)
    with torch.no_grad():
        game = torch.nn.functional.softplus(judged(d, fakes, None) - judged(d, real.images, None)).mean()
        total = game
        for gamma, samples in ((0.7, real.images), (0.4, fakes)):
            squares, step = torch.zeros(BATCH, dtype=torch.float64), 1e-6
            for row in range(SIDE):
                for column in range(SIDE):
                    moved = [samples.clone() for _ in range(2)]
                    moved[0][:, 0, row, column] += step
                    moved[1][:, 0, row, column] -= step
                    squares += ((d(moved[0]) - d(moved[1])) / (2 * step)) ** 2
            total = total + gamma / 2 * squares.mean()
    assert reference.difference(result.share.detach(), total) < 1e-6


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("network", ["g", "d"])
def test_micro_batches_add_up(network, parts):
    objective = objective_of("loss.r1_gamma=0.3", "loss.r2_gamma=0.2", classes=CLASSES)
    loss, = next(one.losses for one in objective.phases() if one.network == network)
    parameters = list((objective.generator if network == "g" else objective.discriminator).parameters())
    pairs = gradients_in_parts(loss, real_of(CLASSES), parts, parameters)
    assert max(reference.difference(a, b) for a, b in pairs) < 1e-9


def test_a_run_from_text_to_scores(tmp_path, capsys):
    shards = pack_lines(tmp_path)
    check_continued(tmp_path, [*TINY_TEXT, f"data.shards={shards}"], (0.048, 0.12))

    run = tmp_path / "whole"
    samples = (run / "samples" / "nimg-00000120.txt").read_text().splitlines()
    assert len(samples) == 8
    assert {word for line in (run / "samples" / "reals.txt").read_text().splitlines() for word in line.split()} <= {*WORDS}
    assert main(["generate", str(run), "--count", "12", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "lines.txt").read_text().splitlines()
    assert len(lines) == 12
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grid.png", "lines.txt"]

    capsys.readouterr()
    assert main(["evaluate", str(run), "--count", "40", "--device", "cpu"]) == 0
    (found,) = read_evaluations(run)
    assert list(found.scores) == ["ngrams_4", "ngrams_3", "ngrams_2", "ngrams_1", "lines", "words", "verbatim", "distinct"]
    assert found.scores["ngrams_1"].floor < found.scores["ngrams_1"].value <= 1
    assert found.scores["words"].floor == 1
    told = capsys.readouterr().out
    assert "(real against real " in told
    assert "no network" in told
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    card = tmp_path / "exported"
    assert main(["export", str(run), str(card), "--formats", "torch"]) == 0  # for any number of samples
    assert "Samples are lines of text" in (card / "README.md").read_text()
    assert '"held_out": []' in (card / "config.json").read_text()  # lines of the data are not published
    assert "Lines of words alone" in (tmp_path / "report.html").read_text()


def test_refused():
    for override, message in (("generator.kernel=4", r"generator\.kernel=4 has no middle"), ("data.mirror=true", "backwards"),
                              ("augment.pipe=bgc", "made for pictures"), ("generator.length=9", "more than the 8 rows"),
                              ("generator.choices=4", r"are more than generator\.z_dim=9")):
        with pytest.raises(InputError, match=message):
            resolved(*SMALL, override)
    with pytest.raises(InputError, match="the family text makes text, and the samples have 3 channels"):
        build_generator(resolved(*SMALL), SampleShape(8, 3), CPU)
    with pytest.raises(InputError, match=r"truncation 0\.7 is not possible: the family text has no mapping network"):
        objective_of().generator.sample(0, "x", torch.arange(3), None, Sampling(truncation=0.7))
