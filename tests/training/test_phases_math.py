"""Whole phases against the reference, with the same random draws; and running means."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import reference
import torch
from torch import Tensor, nn

from stylegan_dist import randomness
from stylegan_dist.config import load_config
from stylegan_dist.data.index import DatasetIndex, Shard
from stylegan_dist.families.stylegan2.objective import StyleGan2Objective
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.objective.phases import MicroBatch, Phase
from stylegan_dist.objective.result import LossResult
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.rules import resolve
from stylegan_dist.training.state import TrainState

SEED, BATCH, GROUP, RESOLUTION = 11, 8, 2, 8
COUNTS = [5, 0, 9, 2]  # images of each class; one class is empty
PATH_MEAN = 0.375
SMALL = [
    "generator.z_dim=5", "generator.w_dim=4", "generator.mapping_layers=2", "generator.channel_base=48",
    "generator.channel_max=4", "discriminator.channel_base=48", "discriminator.channel_max=4",
    "discriminator.mapping_layers=2", f"discriminator.mbstd_group={GROUP}", f"run.seed={SEED}", f"run.batch={BATCH}",
    f"run.batch_gpu={GROUP}", "loss.r1_gamma=3", "optim.g.lr=0.01", "optim.d.lr=0.01",
]


@dataclass
class Case:
    """Networks with random values, their objective, real images, and the same as leaves of the reference."""

    objective: StyleGan2Objective
    networks: dict[str, nn.Module]
    states: dict[str, reference.State]
    real: MicroBatch

    @property
    def loss(self):
        return self.objective.config

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.objective.phases() if phase.name == name)

    def parts(self, count: int) -> list[MicroBatch]:
        size = BATCH // count
        real, slices = self.real, [slice(i, i + size) for i in range(0, BATCH, size)]
        return [MicroBatch(real.images[s], None if real.labels is None else real.labels[s], real.index[s]) for s in slices]


def make_index(channels: int, conditional: bool) -> DatasetIndex:
    shard = Shard("a.tar", sum(COUNTS), 1, "0", "a.npy", "0")
    classes = [f"class{i}" for i in range(len(COUNTS))] if conditional else None
    return DatasetIndex(RESOLUTION, channels, "png", classes, COUNTS if conditional else None, [shard])


def make_config(index: DatasetIndex, *overrides: str):
    return resolve(load_config(None, [*SMALL, *overrides]), index)


def make_case(*overrides: str, channels: int = 1, conditional: bool = False) -> Case:
    index = make_index(channels, conditional)
    resolved = make_config(index, *overrides)
    shape, cpu = SampleShape(index.resolution, index.channels, resolved.num_classes), torch.device("cpu")
    g, d = build_generator(resolved.config, shape, cpu), build_discriminator(resolved.config, shape, cpu)
    networks = {"g": reference.randomize(g, 1).double(), "d": reference.randomize(d, 2).double()}
    objective = StyleGan2Objective(resolved.config, g, d, torch.tensor(COUNTS) if conditional else None)
    objective.running["path_mean"] = torch.tensor(PATH_MEAN).double()
    images = reference.normals(3, BATCH, channels, RESOLUTION, RESOLUTION)
    labels = torch.tensor([2, 0, 3, 2, 2, 0, 3, 0]) if conditional else None
    real = MicroBatch(images, labels, torch.arange(1000, 1000 + BATCH))
    return Case(objective, networks, {name: reference.weights_of(network) for name, network in networks.items()}, real)


def learn(case: Case, phase: Phase, parts: list[MicroBatch]) -> LossResult:
    """The backward passes of one phase, as the training loop makes them: the summed loss, statistics and means."""
    for name, network in case.networks.items():
        network.requires_grad_(name == phase.network)
        network.zero_grad(set_to_none=True)
    total, statistics, means = torch.zeros(()).double(), {}, {}
    for part in parts:
        for loss in phase.losses:
            result = loss(part)
            result.share.backward()
            total = total + result.share.detach()
            for sums, values in ((statistics, result.statistics), (means, result.running_means)):
                for name, value in values.items():
                    sums[name] = sums.get(name, 0) + value.detach()
    return LossResult(total, statistics, means)


# The reference's side of a phase: the whole batch at once


@dataclass
class Drawn:
    """Everything that is drawn for the generated images of a phase."""

    labels: Tensor | None
    w1: Tensor
    ws: Tensor
    noise: list[Tensor]
    cutoff: list[int]


def draw(case: Case, phase: str, index: Tensor, real_labels: Tensor | None) -> Drawn:
    """Draws at the addresses (seed, "phase.purpose", image), and w with style mixing."""
    state = case.states["g"]
    labels = None
    if real_labels is not None:
        labels = real_labels
        if not case.objective.adversarial.paired:
            picture = randomness.integers(SEED, f"{phase}.label", index, sum(COUNTS))[:, 0].tolist()
            by_picture = [label for label, count in enumerate(COUNTS) for _ in range(count)]
            labels = torch.tensor([by_picture[i] for i in picture])
    z = randomness.normal(SEED, f"{phase}.z", index, (5,)).double()
    z2 = randomness.normal(SEED, f"{phase}.mixing_z", index, (5,)).double()
    layers = reference.num_ws(state)
    chance = randomness.uniform(SEED, f"{phase}.mixing", index)[:, 0].tolist()
    place = randomness.integers(SEED, f"{phase}.cutoff", index, layers - 1)[:, 0].tolist()
    # A cut-off behind the last layer means no mixing.
    cutoff = [1 + k if u < case.loss.style_mixing else layers for u, k in zip(chance, place, strict=True)]
    part = reference.below(state, "mapping.")
    w1, w2 = reference.mapping(part, z, labels), reference.mapping(part, z2, labels)
    sizes = [(r, r) for r in reference.noise_shapes(RESOLUTION)]
    noise = randomness.NoiseAddresses(sizes, torch.device("cpu")).draw(SEED, f"{phase}.noise", index)
    return Drawn(labels, w1, reference.mixed(w1, w2, cutoff, layers), [x.double() for x in noise], cutoff)


def fakes(case: Case, drawn: Drawn) -> Tensor:
    return reference.synthesis(reference.below(case.states["g"], "synthesis."), drawn.ws, drawn.noise)


def logits(case: Case, images: Tensor, labels: Tensor | None) -> Tensor:
    return reference.discriminator(case.states["d"], images, labels, GROUP)


def expected_g_main(case: Case) -> Tensor:
    drawn = draw(case, "g_main", case.real.index, case.real.labels)
    fake = logits(case, fakes(case, drawn), drawn.labels)
    real = logits(case, case.real.images, case.real.labels)
    return reference.GENERATOR_LOSS[case.loss.adversarial](real, fake).mean()


def expected_d_main(case: Case) -> Tensor:
    drawn = draw(case, "d_main", case.real.index, case.real.labels)
    fake = logits(case, fakes(case, drawn).detach(), drawn.labels)
    real = logits(case, case.real.images, case.real.labels)
    return reference.DISCRIMINATOR_LOSS[case.loss.adversarial](real, fake).mean()


def expected_d_penalty(case: Case) -> Tensor:
    drawn = draw(case, "d_penalty", case.real.index, case.real.labels)
    c = case.loss
    images = {"r1": (case.real.images, case.real.labels), "r2": (fakes(case, drawn).detach(), drawn.labels)}
    if c.penalty == "exact":
        r1, r2 = (reference.squared_gradients(lambda x, y=y: logits(case, x, y), x).mean() for x, y in images.values())
    else:
        means = []
        for name, (x, y) in images.items():
            noise = randomness.normal(SEED, f"d_penalty.{name}_noise", case.real.index, x.shape[1:]).double()
            change = logits(case, x + c.penalty_sigma * noise, y) - logits(case, x, y)
            means.append((change**2).mean() / c.penalty_sigma**2)
        r1, r2 = means
    return c.penalty_interval * (c.r1_gamma / 2 * r1 + c.r2_gamma / 2 * r2)


def expected_path_lengths(case: Case) -> Tensor:
    n = case.loss.path_length_shrink
    index, labels = case.real.index[::n], None if case.real.labels is None else case.real.labels[::n]
    drawn = draw(case, "g_path", index, labels)
    channels = case.real.images.shape[1]
    direction = randomness.normal(SEED, "g_path.direction", index, (channels, RESOLUTION, RESOLUTION)).double()
    part = reference.below(case.states["g"], "synthesis.")
    return reference.path_lengths(
        lambda w, i: reference.synthesis(part, w, [x[i:i + 1] for x in drawn.noise]), drawn.ws, direction)


def expected_g_path(case: Case) -> Tensor:
    c = case.loss
    return c.path_length_interval * c.path_length_weight * ((expected_path_lengths(case) - PATH_MEAN) ** 2).mean()


EXPECTED = {"g_main": expected_g_main, "g_path": expected_g_path, "d_main": expected_d_main, "d_penalty": expected_d_penalty}
CASES = {
    "plain": ((), {}),
    "conditional": (("loss.adversarial=hinge", "discriminator.architecture=orig", "loss.r2_gamma=2"),
                    {"conditional": True}),
    "relativistic": (("loss.adversarial=relativistic", "loss.r2_gamma=5", "loss.style_mixing=0.5"),
                     {"conditional": True}),
    "unmixed": (("loss.adversarial=least_squares", "loss.style_mixing=0", "loss.path_length_shrink=1",
                 "loss.path_length_interval=3", "loss.penalty_interval=5"), {}),
    "colour": (("loss.adversarial=minimax", "loss.path_length_weight=0"), {"channels": 3}),
}
PHASES = [(case, phase) for case in CASES for phase in EXPECTED if (case, phase) != ("colour", "g_path")]
APPROXIMATE = {
    "approximate": (("loss.penalty=approximate", "loss.r2_gamma=2", "loss.penalty_sigma=0.05"), {"channels": 3}),
    "approximate conditional": (("loss.penalty=approximate", "loss.r2_gamma=2"), {"conditional": True}),
    # On real images: generated ones are made in bf16, as always. What is computed again must have the same dtype.
    "approximate bf16": (("loss.penalty=approximate", "precision.dtype=bf16", "run.recompute=8"), {}),
}
CASES |= APPROXIMATE
PHASES += [(case, "d_penalty") for case in APPROXIMATE]


def phases(*heart: str) -> list:
    """PHASES as parameters; those of other cases are `full`."""
    return [pytest.param(*phase, marks=() if phase[0] in heart else pytest.mark.full) for phase in PHASES]


def case_of(name: str) -> Case:
    overrides, options = CASES[name]
    return make_case(*overrides, **options)


@pytest.mark.parametrize(("name", "phase_name"), phases("plain", "conditional", "relativistic"))
def test_phase_equals_the_reference(name, phase_name):
    case = case_of(name)
    phase = case.phase(phase_name)
    assert phase.network == phase_name[0]
    loss = learn(case, phase, case.parts(1)).share
    expected = EXPECTED[phase_name](case)
    expected.backward()
    assert reference.difference(loss, expected) < 1e-10
    differences = reference.gradient_differences(case.networks[phase.network], case.states[phase.network])
    assert max(differences.values()) < 1e-7, differences
    other = case.networks["d" if phase.network == "g" else "g"]
    assert all(p.grad is None for p in other.parameters()), "the other network has learnt"


@pytest.mark.parametrize(("name", "phase_name"), phases("relativistic"))
def test_shares_of_micro_batches_add_up(name, phase_name):
    case = case_of(name)
    results = []
    for count in (1, 2, 4):
        loss, stats, means = learn(case, case.phase(phase_name), case.parts(count))
        stats = {**stats, **means}
        network = case.networks[phase_name[0]]
        grads = {n: None if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}
        results.append((loss, stats, grads))
    loss, stats, grads = results[0]
    largest = max(g.abs().max() for g in grads.values() if g is not None)
    for other_loss, other_stats, other_grads in results[1:]:
        assert reference.difference(other_loss, loss) < 1e-10
        assert other_stats.keys() == stats.keys()
        for key, value in stats.items():
            torch.testing.assert_close(other_stats[key], value, rtol=1e-6, atol=1e-9)
        for key, grad in grads.items():
            assert (grad is None) == (other_grads[key] is None)
            if grad is not None:
                assert (other_grads[key] - grad).abs().max() < 1e-9 * largest, key


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_the_noise_of_the_approximate_penalty_is_drawn_by_image_number(name):
    other = "r2" if name == "r1" else "r1"
    case = make_case("loss.penalty=approximate", "loss.r1_gamma=1", "loss.r2_gamma=1", f"loss.{other}_gamma=0")
    seen: list[Tensor] = []
    case.networks["d"].register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0]))
    for part in case.parts(2):
        case.objective.d_penalty(part)
    for start, clean, disturbed in ((0, *seen[:2]), (4, *seen[2:])):
        noise = randomness.normal(SEED, f"d_penalty.{name}_noise", torch.arange(1000 + start, 1004 + start), clean.shape[1:])
        assert reference.difference((disturbed - clean) / 0.01, noise.double()) < 1e-9
    assert list(case.objective.d_penalty(case.real).statistics) == [f"loss/{name}"]


@pytest.fixture
def tf32():
    """TF32 is allowed; afterwards as before."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield lambda: tuple(backend.allow_tf32 for backend in backends)
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def test_low_precision_and_tf32_are_set_aside_for_the_approximate_penalty(tf32):
    case = make_case("loss.penalty=approximate", "precision.dtype=bf16")
    d, seen = case.networks["d"], []
    policy = d.precision
    d.register_forward_pre_hook(lambda *_: seen.append((d.precision.low, *tf32())))
    case.objective.d_main(case.real)
    assert set(seen) == {(torch.bfloat16, True, True)}
    seen.clear()
    case.objective.d_penalty(case.real)
    assert seen == [(torch.float32, False, False)] * 2
    assert d.precision is policy
    assert tf32() == (True, True)


def test_the_draws_of_the_cases_are_not_trivial():
    """Otherwise equality with the reference would say little about mixing and labels."""
    case = case_of("conditional")
    drawn = draw(case, "g_main", torch.arange(400), torch.zeros(400).long())
    assert set(drawn.cutoff) == {1, 2, 3, 4}, "the first layer is never mixed; 4 means not at all"
    assert drawn.cutoff.count(4) / 400 == pytest.approx(0.1, abs=0.04)
    for cutoff in (1, 2, 3):
        assert drawn.cutoff.count(cutoff) / 400 == pytest.approx(0.3, abs=0.08)
    for label, count in enumerate(COUNTS):
        assert (drawn.labels == label).float().mean().item() == pytest.approx(count / sum(COUNTS), abs=0.08)
    assert set(draw(case, "g_main", case.real.index, case.real.labels).cutoff) > {1, 2}


def test_labels_have_the_frequencies_of_the_data():
    case = case_of("conditional")
    real = MicroBatch(case.real.images, torch.zeros(1600).long(), torch.arange(1600))
    labels = case.objective.labels("d_main", real)
    found = torch.bincount(labels, minlength=4) / 1600
    assert found.tolist() == pytest.approx([count / sum(COUNTS) for count in COUNTS], abs=0.04)
    assert found[1] == 0, "a class without images is never generated"


def test_relativistic_pairs_have_equal_labels_and_numbers():
    """The loss of a fake depends on the real image of its own number, and is given that image's label."""
    case = case_of("relativistic")
    seen: list[tuple[Tensor, Tensor]] = []
    d = case.objective.discriminator
    d.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments))
    for loss in (case.objective.g_main, case.objective.d_main):
        seen.clear()
        loss(case.real)
        (fake, fake_labels), (real, real_labels) = seen
        assert real is case.real.images
        assert fake is not real
        assert torch.equal(fake_labels, case.real.labels)
        assert torch.equal(real_labels, case.real.labels)


def test_statistics_of_the_main_phases():
    case = case_of("plain")
    stats = learn(case, case.phase("d_main"), case.parts(2)).statistics
    drawn = draw(case, "d_main", case.real.index, None)
    fake, real = logits(case, fakes(case, drawn), None), logits(case, case.real.images, None)
    expected = {"logits/real": real.mean(), "logits/fake": fake.mean(), "sign/real": real.sign().mean(),
                "sign/fake": fake.sign().mean(), "loss/d_main": expected_d_main(case)}
    assert stats.keys() == expected.keys()
    for name, value in expected.items():
        assert stats[name].item() == pytest.approx(value.item(), rel=1e-9), name


def test_running_means():
    """w_avg and the target path length move towards the global means of their phases."""
    case = case_of("plain")
    g, objective = case.networks["g"], case.objective
    before, objective.w_avg_decay = g.w_avg.clone(), 0.9
    result = learn(case, case.phase("g_main"), case.parts(4))
    assert "w" not in result.statistics, "a vector is no statistic to log"
    objective.update_running(result.running_means)
    mean = draw(case, "g_main", case.real.index, None).w1.mean(0)
    assert reference.difference(g.w_avg, 0.9 * before + 0.1 * mean) < 1e-9

    result = learn(case, case.phase("g_path"), case.parts(4))
    target = objective.running["path_mean"]
    assert target.item() == PATH_MEAN, "constant during the phase"
    objective.update_running(result.running_means)
    mean = expected_path_lengths(case).mean().item()
    assert result.statistics["path_length/mean"].item() == pytest.approx(mean, rel=1e-6)
    assert target.item() == pytest.approx(PATH_MEAN + 0.01 * (mean - PATH_MEAN), rel=1e-6)
    assert abs(mean - PATH_MEAN) > 0.01


@pytest.mark.parametrize(
    ("overrides", "expected", "lazy"),
    [
        ([], [("g_main", 1, 1), ("g_path", 4, 1), ("d_main", 1, 1), ("d_penalty", 16, 1)], (4, 16)),
        (["loss.path_length_weight=0"], [("g_main", 1, 1), ("d_main", 1, 1), ("d_penalty", 16, 1)], (1, 16)),
        (["loss.r1_gamma=0", "loss.path_length_interval=1"], [("g_main", 1, 2), ("d_main", 1, 1)], (1, 1)),
        (["loss.penalty_interval=1", "loss.path_length_interval=8"],
         [("g_main", 1, 1), ("g_path", 8, 1), ("d_main", 1, 2)], (8, 1)),
        (["loss.r1_gamma=0", "loss.r2_gamma=1", "loss.penalty_interval=2"],
         [("g_main", 1, 1), ("g_path", 4, 1), ("d_main", 1, 1), ("d_penalty", 2, 1)], (4, 2)),
    ],
)
def test_phases_and_the_optimizers_they_need(overrides, expected, lazy):
    index = make_index(1, False)
    state = TrainState(make_config(index, *overrides), index, torch.device("cpu"))
    assert [(p.name, p.interval, len(p.losses)) for p in state.phases] == expected
    for name, interval in zip(("g", "d"), lazy, strict=True):
        lr, betas = reference.lazy_adam(0.01, (0.0, 0.99), interval)
        group, = state.optimizers[name].param_groups
        assert (group["lr"], *group["betas"]) == pytest.approx((lr, *betas), rel=1e-12)
        assert group["eps"] == 1e-8
        assert {id(p) for p in group["params"]} == {id(p) for p in state.networks[name].parameters()}


def test_a_joined_regulariser_is_not_multiplied():
    case = make_case("loss.penalty_interval=1", "loss.path_length_interval=1")
    for main, regulariser in (("g_main", "g_path"), ("d_main", "d_penalty")):
        loss = learn(case, case.phase(main), case.parts(2)).share
        assert reference.difference(loss, EXPECTED[main](case) + EXPECTED[regulariser](case)) < 1e-10
