"""The perceptrons of 2014: networks, dropout and both games against formulas, and a run of them."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from launching import TINY_MLP
from parts import gradients_in_parts
from small_families import batch_of, check_continued, index_of, with_random_networks
from torch import Tensor

from stylegan_dist import randomness
from stylegan_dist.cli import main
from stylegan_dist.config import load_config
from stylegan_dist.errors import InputError
from stylegan_dist.families.mlp.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.families.mlp.networks import Discriminator, Generator
from stylegan_dist.families.mlp.objective import MlpObjective
from stylegan_dist.networks.generator import SampleShape, Sampling
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.rules import resolve

CPU = torch.device("cpu")
BATCH, CLASSES = 8, 3
SMALL = ("generator.family=mlp", "generator.z_dim=6", "generator.class_dim=3", "generator.width=10", "discriminator.width=5",
         "discriminator.pieces=3", "discriminator.class_dim=4", f"run.batch={BATCH}", "run.batch_gpu=8")


def resolved(*overrides: str, classes: int = 0):
    return resolve(load_config(None, ["data.shards=somewhere", *overrides]), index_of(8, classes)).config


def objective_of(*overrides: str, classes: int = 0) -> MlpObjective:
    """Of networks with random weights, in float64."""
    config = resolved(*SMALL, *overrides, classes=classes)
    return with_random_networks(MlpObjective, config, SampleShape(8, 3, classes))


def real_of(classes: int = 0) -> MicroBatch:
    return batch_of(reference.normals(0, BATCH, 3, 8, 8), classes)


def painted(g: Generator, z: Tensor, labels: Tensor | None) -> Tensor:
    """Of each latent by itself: 2 s(x) - 1 of the last layer's x."""
    images = []
    for n in range(len(z)):
        x = z[n].double()
        if labels is not None:
            x = torch.cat([x, g.embed.weight[:, labels[n]] + g.embed.bias])
        for layer in g.hidden:
            x = torch.clamp(layer.weight @ x + layer.bias, min=0)
        images.append(2 / (1 + torch.exp(-(g.out.weight @ x + g.out.bias))) - 1)
    return torch.stack(images).view(-1, 3, 8, 8)


def judged(d: Discriminator, images: Tensor, labels: Tensor | None, uniform: Tensor | None) -> Tensor:
    """Of each image by itself: maxout layers, and dropout that keeps a value where its draw reaches the probability."""
    logits = []
    for n in range(len(images)):
        x = (images[n].reshape(-1) + 1) / 2
        start = 0

        def dropped(x: Tensor, p: float, n: int = n) -> Tensor:
            nonlocal start
            if uniform is None:
                return x
            draws, start = uniform[n, start:start + len(x)], start + len(x)
            return torch.stack([value / (1 - p) if u >= p else 0 * value for value, u in zip(x, draws.tolist(), strict=True)])

        x = dropped(x, 0.2)
        if labels is not None:
            x = torch.cat([x, d.embed.weight[:, labels[n]] + d.embed.bias])
        for layer in d.hidden:
            pieces = layer.weight @ x + layer.bias
            x = dropped(torch.stack([max(pieces[i:i + 3]) for i in range(0, len(pieces), 3)]), 0.5)
        logits.append(d.out.weight[0] @ x + d.out.bias[0])
    return torch.stack(logits)


def test_published_sizes():
    """Of the experiment with MNIST: 28 x 28 grey pixels."""
    shape = SampleShape(28, 1)
    sizes = [sum(p.numel() for p in network.parameters())
             for network in (Generator(shape, GeneratorConfig()), Discriminator(shape, DiscriminatorConfig()))]
    assert sizes == [2_503_984, 1_231_441]


def test_initial_values():
    config, shape = resolved("generator.family=mlp", "generator.width=240", classes=10), SampleShape(8, 3, 10)
    networks = (build_generator(config, shape, CPU), 0.05), (build_discriminator(config, shape, CPU), 0.005)
    for network, limit in networks:
        for name, p in network.named_parameters():
            if name.endswith("bias"):
                assert not p.any()
            elif p.numel() > 10_000:
                assert p.abs().max().item() == pytest.approx(limit, rel=1e-3)
                quarters = torch.histc(p.detach(), 4, -limit, limit) / p.numel()
                assert torch.allclose(quarters, torch.tensor(0.25), atol=0.01), name


def test_latents_are_uniform_with_variance_one():
    z = objective_of().generator.draw(0, "x", torch.arange(4000))
    assert z.std().item() == pytest.approx(1, abs=0.02)
    assert -z.min().item() == pytest.approx(math.sqrt(3), abs=1e-3)
    assert z.max().item() == pytest.approx(math.sqrt(3), abs=1e-3)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_networks_are_what_the_paper_says(classes):
    objective = objective_of(classes=classes)
    g, d, real = objective.generator, objective.discriminator, real_of(classes)
    z = g.draw(0, "x", real.index)
    assert reference.difference(g(z, real.labels), painted(g, z, real.labels)) < 1e-12
    assert torch.equal(g.sample(0, "x", real.index, real.labels, Sampling()), g(z, real.labels))
    uniform = randomness.uniform(0, "u", real.index, 3 * 64 + 2 * 5)
    for draws in (None, uniform):
        expected = judged(d, real.images, real.labels, draws)
        assert reference.difference(d(real.images, real.labels, draws), expected) < 1e-12
    assert reference.difference(d(real.images, real.labels), d(real.images, real.labels, uniform)) > 1e-3


def test_dropout_keeps_the_mean():
    d = Discriminator(SampleShape(28, 1), DiscriminatorConfig())
    factors = d._factors(randomness.uniform(0, "u", torch.arange(500), d.draws), torch.float64)
    assert [part.shape[1] for part in factors] == [784, 240, 240]
    for part, p in zip(factors, (0.2, 0.5, 0.5), strict=True):
        assert set(part.unique().tolist()) == {0, 1 / (1 - p)}
        assert part.mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("game", ["nonsaturating", "minimax"])
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_both_sides_of_the_game(game, classes):
    """Losses and gradients of all parameters, with the dropout of each phase and side."""
    objective = objective_of(f"loss.adversarial={game}", classes=classes)
    g, d, real = objective.generator, objective.discriminator, real_of(classes)

    def logits(phase: str, side: str, images: Tensor, labels: Tensor | None) -> Tensor:
        return judged(d, images, labels, randomness.uniform(0, f"{phase}.dropout.{side}", real.index, 202))

    def fakes(phase: str) -> tuple[Tensor, Tensor | None]:
        labels = objective.labels(phase, real)
        return painted(g, randomness.uniform(0, f"{phase}.z", real.index, 6) * 2 * math.sqrt(3) - math.sqrt(3), labels), labels

    images, labels = fakes("d_main")
    expected = reference.DISCRIMINATOR_LOSS[game](logits("d_main", "real", real.images, real.labels),
                                                  logits("d_main", "fake", images.detach(), labels)).mean()
    check(objective.d_main(real).share, expected, d)
    expected = reference.GENERATOR_LOSS[game](None, logits("g_main", "fake", *fakes("g_main"))).mean()
    check(objective.g_main(real).share, expected, g)


def check(share: Tensor, expected: Tensor, network: torch.nn.Module) -> None:
    assert reference.difference(share, expected) < 1e-6  # draws are float32
    pairs = zip(*(torch.autograd.grad(value, list(network.parameters())) for value in (share, expected)), strict=True)
    assert max(reference.difference(a, b) for a, b in pairs) < 1e-5


@pytest.mark.parametrize(("logit", "slope"), [(-6.0, {"minimax": 0.002473, "nonsaturating": 0.997527}),
                                              (0.0, {"minimax": 0.5, "nonsaturating": 0.5})])
def test_minimax_learns_least_where_it_is_worst(logit, slope):
    """Goodfellow et al. 2014, section 3: where D is sure of a fake, log(1 - D) is flat; log D is not."""
    for game, expected in slope.items():
        fake = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
        loss = objective_of(f"loss.adversarial={game}").adversarial.generator(fake, None)
        assert -torch.autograd.grad(loss.sum(), fake)[0].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("phase", ["g_main", "d_main", "d_penalty"])
def test_micro_batches_add_up(phase, parts):
    objective = objective_of("loss.r1_gamma=0.3", "loss.r2_gamma=0.2", classes=CLASSES)
    loss, = next(one.losses for one in objective.phases() if one.name == phase)
    parameters = list((objective.generator if phase == "g_main" else objective.discriminator).parameters())
    every = gradients_in_parts(loss, real_of(CLASSES), parts, parameters, unused=True)  # a penalty: biases, labels
    pairs = [(a, b) for a, b in every if b.any()]
    assert len(pairs) >= 3
    assert max(reference.difference(a, b) for a, b in pairs) < 1e-10


def test_a_run_is_continued_and_drawn_with(small_shards, tmp_path, capsys):
    check_continued(tmp_path, [*TINY_MLP, f"data.shards={small_shards}"], (0.048, 0.12))
    assert main(["generate", str(tmp_path / "whole"), "--seeds", "0-3", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("seed*.png"))) == 4
    capsys.readouterr()
    assert main(["train", *TINY_MLP, f"data.shards={small_shards}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "2 maxout layers" in text
    assert "peak of tensors on each rank" in text


def test_refused():
    with pytest.raises(InputError, match=r"truncation 0\.7 is not possible: this family has no mapping network"):
        objective_of().generator.sample(0, "x", torch.arange(3), None, Sampling(truncation=0.7))
    with pytest.raises(InputError, match=r"discriminator\.dropout"):
        resolved(*SMALL, "discriminator.dropout=1")
