"""GAT: its networks against a plain form of them, and its levels. Its game: test_gat_game.py."""

from __future__ import annotations

import math

import gat_reference
import pytest
import reference
import torch
from launching import ROOT
from small_gat import CLASSES, CPU, META, OF_D, OF_G, SMALL, batch_of, networks, objective_of, resolved

from stylegan_dist.families.gat.layers import patches, positions, rotated, rotations, unpatched
from stylegan_dist.families.gat.levels import amounts, noised
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.training.build import build_discriminator, build_generator

# Sizes

PUBLISHED = {  # depth, width, heads, hidden; parameters of G and D at patches of 2, with tables of positions and unused layers
    "s": (12, 384, 6, 1024, 29_361_344, 32_654_464), "b": (12, 768, 12, 2048, 116_754_752, 97_331_968),
    "l": (24, 1024, 16, 2730, 408_748_576, 315_166_688), "xl": (28, 1152, 16, 3072, 602_251_136, 459_547_456),
}


def counted(depth: int, w: int, heads: int, hidden: int, patch: int, classes: int = 1000) -> tuple[int, int]:
    """Parameters of G and D by hand."""
    block = (3 * w * w + 3 * w) + (w * w + w) + 2 * (w // heads) + (2 * w * hidden + 2 * hidden) + (hidden * w + w)
    values = 4 * patch**2
    g = classes * 64 + (128 * w + w) + (w * w + w)
    g += depth * (block + 4 * w * w + 4 * w) + 4 * ((w * w + w) + (w * values + values))
    d = (4 * values * w + w) + w + depth * (block + 4 * w) + w + (w * 2048 + 2048)
    return g, d + classes * 2048 + 2 * (2048**2 + 2048)


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_sizes(size, patch):
    depth, width, heads, hidden, of_g, of_d = PUBLISHED[size]
    config = resolved(f"generator.patch={patch}", resolution=32, classes=1000, channels=4,
                      preset=ROOT / f"launch/presets/gat-{size}2-latents.yaml")
    assert (config.generator.depth, config.generator.width, config.generator.heads, config.generator.hidden) == (
        depth, width, heads, hidden)
    shape = SampleShape(32, 4, 1000)
    sizes = tuple(sum(p.numel() for p in network.parameters())
                  for network in (build_generator(config, shape, META), build_discriminator(config, shape, META)))
    assert sizes == counted(depth, width, heads, hidden, patch)
    if patch == 2:
        table, unused = 256 * width, 17 * width  # the published G has an embedding of patches that is multiplied by 0
        assert sizes == (of_g - table - unused, of_d - table)


@pytest.mark.parametrize("size", PUBLISHED)
def test_presets(size):
    config = resolved(resolution=32, classes=1000, channels=4, preset=ROOT / f"launch/presets/gat-{size}2-latents.yaml")
    for optimizer, width in ((config.optim.g, config.generator.width), (config.optim.d, config.discriminator.width)):
        assert (optimizer.name, optimizer.betas, optimizer.weight_decay, optimizer.clip) == ("AdamW", [0, 0.99], 0, 1)
        assert optimizer.lr == pytest.approx(2e-4 * 768 / width)
    loss = config.loss
    assert (loss.adversarial, loss.penalty, loss.penalty_interval, loss.r1_gamma, loss.r2_gamma, loss.penalty_sigma) == (
        "relativistic", "approximate", 1, 0.1, 0.1, 0.01)
    assert 0.5 ** (config.run.batch / (1000 * config.ema.half_life_kimg)) == pytest.approx(0.999, rel=1e-6)
    assert (config.run.batch, config.ema.rampup, config.run.recompute) == (512, 0, 8)


# Networks


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_networks_and_their_gradients_are_those_of_the_plain_form(classes):
    g, d = networks(classes=classes)
    z, labels = reference.normals(5, 3, 6), torch.tensor([1, 0, 2]) if classes else None
    state = reference.weights_of(g)
    w = gat_reference.mapping(reference.below(state, "mapping."), z, labels)
    expected = gat_reference.synthesis(reference.below(state, "synthesis."), w, *OF_G)
    made = g.synthesis(g.mapping(z, labels))
    assert made.shape == (3, 4, 3, 8, 8)
    assert reference.difference(made, expected) < 1e-11
    assert torch.equal(g(z, labels), made[:, -1])
    assert torch.equal(g.synthesize(g.mapping(z, labels)[:, None].expand(-1, g.num_ws, -1), labels), made[:, -1])
    weights = reference.normals(6, *made.shape)
    (made * weights).sum().backward(), (expected * weights).sum().backward()
    worst = reference.gradient_differences(g, state)
    assert max(worst.values()) < 1e-8, worst

    state, levels = reference.weights_of(d), reference.normals(7, 3, 4, 3, 8, 8)
    logits, expected = d(levels, labels), gat_reference.discriminator(state, levels, labels, *OF_D)
    assert reference.difference(logits, expected) < 1e-11
    logits.square().sum().backward(), expected.square().sum().backward()
    worst = reference.gradient_differences(d, state)
    assert max(worst.values()) < 1e-8, worst


def test_initial_values():
    config = resolved(*SMALL, "generator.width=256", "discriminator.width=256", "discriminator.heads=4", "generator.hidden=600",
                      "discriminator.hidden=600", "discriminator.class_dim=400", "generator.class_dim=64", classes=50)
    g, d = (build(config, SampleShape(8, 3, 50), CPU) for build in (build_generator, build_discriminator))
    for network in (g, d):
        for name, p in network.named_parameters():
            if name.endswith("bias"):
                assert not p.any(), name
            elif "norm" in name:
                assert (p == 1).all(), name
            elif "scale" in name:
                assert (p == 0.1).all(), name
            else:
                glorot = math.sqrt(2 / (p.shape[0] + p.shape[-1]))
                std = {"embed.weight": 0.02, "cls": 0.02, "modulation.weight": 0.1 * glorot, "first.weight": 100 * glorot,
                       "second.weight": 100 * glorot}
                known = next((value for end, value in std.items() if name.endswith(end) and name != "embed.weight"), glorot)
                assert p.std().item() == pytest.approx(known, rel=0.1), name


def test_without_modulation_the_image_is_the_heads_of_the_positions():
    g, _ = networks()
    for name, p in g.named_parameters():
        if "modulation" in name:
            p.data.zero_()
    table = gat_reference.rms(gat_reference.positions(16, 4))
    expected, levels = 0, g.synthesis(reference.normals(0, 2, 16))
    for i, head in enumerate(g.synthesis.heads):
        expected = expected + gat_reference.assembled((table @ head.out.weight.t() + head.out.bias)[None], 2)
        assert reference.difference(levels[:1, i], expected) < 1e-12


def test_patches():
    images = reference.normals(0, 2, 3, 8, 8)
    for size in (1, 2, 4):
        assert torch.equal(unpatched(patches(images, size), size), images)
        assert torch.equal(patches(images, size), gat_reference.cut(images, size))


def test_positions():
    assert reference.difference(positions(16, 4, torch.float64, CPU), gat_reference.positions(16, 4)) < 1e-14
    q, k = reference.normals(1, 8), reference.normals(2, 8)
    side, turns = 6, rotations(8, 6, 1, torch.float64, CPU)
    queries, keys = (rotated(x.expand(1 + side**2, 8), turns) for x in (q, k))
    assert torch.equal(queries[0], q), "what stands before the image is not turned"
    products = (queries[1:] @ keys[1:].t()).view(side, side, side, side)  # row, column of a query; of a key
    moved = products[1:, 2:, 1:, 2:]
    assert reference.difference(moved, products[:-1, :-2, :-1, :-2]) < 1e-12, "differences of places alone matter"
    assert products[0, 0, 0, 1] != products[0, 0, 1, 0]
    x = torch.nn.functional.normalize(reference.normals(3, 5, 37, 8), dim=2)
    assert torch.allclose(rotated(x, turns).norm(dim=2), torch.ones(5, 37).double())


# Levels


def test_the_noise_of_levels():
    """By the noise that each single draw makes: its variances, and that coarse levels are finer ones with more noise."""
    t = torch.tensor(amounts(4), dtype=torch.float64)
    assert t.tolist() == pytest.approx(gat_reference.TIMES)
    draws = torch.eye(4, dtype=torch.float64)[:, :, None, None, None]
    mixture = noised(torch.zeros_like(draws), draws)[..., 0, 0, 0].t()  # level, draw
    covariance = mixture @ mixture.t()
    assert torch.allclose(covariance.diagonal(), t.square(), atol=1e-15)
    for i in range(4):
        for j in range(i, 4):
            assert covariance[i, j].item() == pytest.approx((t[j]**2 * (1 - t[i]) / (1 - t[j])).item(), abs=1e-12)
    images = reference.normals(0, 2, 4, 3, 8, 8)
    assert torch.allclose(noised(images, torch.zeros_like(images)), images * (1 - t)[:, None, None, None])


def test_real_images_are_alike_at_all_levels_and_generated_ones_are_not():
    seen = {}
    objective = objective_of("augment.pipe=diffaugment")
    objective.forwards["d"] = lambda levels, labels: seen.setdefault(len(seen), levels)[:, 0, 0, 0, 0]
    real, plain = batch_of(), objective.augmentation
    objective.g_main(real)
    fake = objective.generate("d_main", real.index, None)[0]
    for levels, images, side in zip(seen.values(), (fake, real.images[:, None].expand_as(fake)), ("fake", "real"), strict=True):
        each = [plain(images[:, i], 0, f"g_main.augment.{side}", real.index, None) for i in range(4)]
        expected = gat_reference.noisy_levels(torch.stack(each, 1), 0, f"g_main.levels.{side}", real.index)
        assert reference.difference(levels, expected) < 1e-12


def test_samples_without_levels_are_judged_under_a_fixed_noise():
    _, d = networks()
    images, zero = reference.normals(0, 3, 3, 8, 8), torch.zeros(1, dtype=torch.int64)
    levels = gat_reference.noisy_levels(torch.stack([images] * 4, 1), 0, "gat.levels", zero)
    assert reference.difference(d(images), d(levels)) < 1e-12
    assert reference.difference(d.features(images)[1:2], d.features(images[1:2])) < 1e-12
