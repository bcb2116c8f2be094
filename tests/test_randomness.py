"""The counter-based generator: the published vectors, addressing, distributions, and names that do not collide."""

from __future__ import annotations

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import stylegan2_discriminator, stylegan2_generator

import stylegan_dist
from stylegan_dist import randomness
from stylegan_dist.randomness import (
    NoiseAddresses,
    coins,
    integers,
    layer_noise,
    noise_address,
    normal,
    permutation,
    philox4x32,
    purpose_id,
    uniform,
    words,
)

# Counter, key, result: kat_vectors of Random123, philox4x32 with 10 rounds.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
FAR = 1 << 40  # an image number far beyond 32 bits


@pytest.mark.parametrize("make", [torch.tensor, np.array], ids=["torch", "numpy"])
@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(make, counter, key, expected):
    result = philox4x32(*(make([word]) for word in counter), *key)
    assert tuple(int(word[0]) for word in result) == expected


def test_words_are_philox_at_the_documented_address():
    """Key and counter as the module promises, by hand; streams must never change between versions."""
    image, seed, count = (7 << 32) + 5, 11, 10
    drawn = words(seed, "some.purpose", torch.tensor([image]), count)
    expected = []
    for block in range(3):
        address = [np.array([value]) for value in (block, 0, 5, 7)]
        expected += [int(word[0]) for word in philox4x32(*address, seed, purpose_id("some.purpose"))]
    assert drawn[0].tolist() == expected[:count]
    assert purpose_id("123456789") == 0xCBF43926, "the check value of CRC-32"


DRAWS = {
    "words": lambda index: words(1, "a", index, 9),
    "uniform": lambda index: uniform(1, "a", index, 5),
    "integers": lambda index: integers(1, "a", index, 1000, 3),
    "normal": lambda index: normal(1, "a", index, (3, 5, 7)),
    "noise": lambda index: torch.cat([m.flatten(1) for m in NoiseAddresses([(3, 3), (8, 8)], torch.device("cpu"))
                                      .draw(1, "a", index)], dim=1),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("start", [0, (1 << 32) - 20, FAR])
def test_a_draw_depends_on_its_index_alone(draw, start):
    """In any subset, order and batch, with repetitions: bit-equal."""
    index = torch.arange(start, start + 40)
    together = draw(index)
    assert len({row.numpy().tobytes() for row in together}) == 40, "indices differ in their draws"
    one_by_one = torch.cat([draw(index[i:i + 1]) for i in range(40)])
    assert torch.equal(one_by_one, together)
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 17, 40, 61):
        pick = torch.from_numpy(rng.integers(0, 40, size))
        assert torch.equal(draw(index[pick]), together[pick])


def test_all_64_bits_of_an_index_count():
    index = torch.tensor([5, 5 + (1 << 32), 5 + (1 << 33), 5 + FAR])
    assert len({tuple(row) for row in words(0, "a", index, 4).tolist()}) == 4


def test_shapes_dtypes_ranges_and_no_draw():
    index = torch.arange(6)
    assert words(0, "a", index, 5).shape == (6, 5)
    assert uniform(0, "a", index).dtype == torch.float32
    assert normal(0, "a", index, (2, 3)).shape == (6, 2, 3)
    assert normal(0, "a", index, ()).shape == (6,)
    assert normal(0, "a", index[:0], (4,)).shape == (0, 4)
    drawn = integers(0, "a", torch.arange(2000), 3)
    assert set(drawn.flatten().tolist()) == {0, 1, 2}
    assert set(integers(0, "a", index, 1).flatten().tolist()) == {0}
    assert int(integers(0, "a", torch.arange(2000), 1 << 31).min()) >= 0
    values = uniform(0, "a", torch.arange(2000), 8)
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert torch.equal(values, (values * 2**24).round() * 2.0**-24), "24 bits"


def test_longer_draws_begin_with_the_shorter():
    index = torch.arange(3)
    assert torch.equal(normal(0, "a", index, (5,)), normal(0, "a", index, (64,))[:, :5])


def test_no_word_makes_a_normal_infinite():
    from stylegan_dist.randomness import _box_muller

    extremes = torch.tensor(list(itertools.product([0, 1, 1 << 31, 0xFFFFFFFF], repeat=4)))
    drawn = _box_muller(extremes)
    assert torch.isfinite(drawn).all()
    assert drawn.abs().max() < 7


def close_to(value: float, expected: float, standard_error: float) -> bool:
    """Within five standard errors: fails for a fixed seed only if the generator is wrong."""
    return abs(value - expected) < 5 * standard_error


N = 1 << 19


@pytest.mark.parametrize("draw", [
    lambda: normal(3, "stat.z", torch.arange(N // 512), (512,)),                   # many words of few images
    lambda: normal(3, "stat.z", torch.arange(FAR, FAR + N // 4), (4,)),            # few words of many images
    lambda: torch.cat([m.flatten() for m in NoiseAddresses([(64, 64)] * 2, torch.device("cpu"))
                       .draw(3, "stat.noise", torch.arange(N // 8192))]),
], ids=["one image", "many images", "noise"])
def test_normal_moments(draw):
    x = draw().double().flatten()
    assert len(x) == N
    assert close_to(x.mean().item(), 0, 1 / N**0.5)
    assert close_to(x.square().mean().item(), 1, (2 / N) ** 0.5)
    assert close_to((x**3).mean().item(), 0, (15 / N) ** 0.5)
    assert close_to((x**4).mean().item(), 3, (96 / N) ** 0.5)
    inside = (x.abs() < 1).double().mean().item()
    assert close_to(inside, math.erf(0.5**0.5), 0.47 / N**0.5)
    tail = (x.abs() > 3).double().mean().item()
    assert close_to(tail, math.erfc(3 * 0.5**0.5), (0.0027 / N) ** 0.5)


def test_uniform_and_integer_distributions():
    u = uniform(3, "stat.u", torch.arange(N // 4), 4).double().flatten()
    assert close_to(u.mean().item(), 0.5, (1 / 12 / N) ** 0.5)
    assert close_to(u.var().item(), 1 / 12, (1 / 180 / N) ** 0.5)
    for counts in (torch.histc(u, 64, 0, 1), torch.bincount(integers(3, "stat.i", torch.arange(N), 64)[:, 0])):
        chi2 = ((counts.double() - N / 64).square() / (N / 64)).sum().item()
        assert close_to(chi2, 63, (2 * 63) ** 0.5)


def test_streams_are_independent():
    """Correlation of values and of squares between purposes, seeds, neighbouring images, words and layers."""
    count = 256
    base = normal(5, "stat.a", torch.arange(1000), (count,))
    maps = NoiseAddresses([(16, 16)] * 3, torch.device("cpu")).draw(5, "stat.a", torch.arange(1000))
    pairs = {
        "purposes": (base, normal(5, "stat.b", torch.arange(1000), (count,))),
        "seeds": (base, normal(6, "stat.a", torch.arange(1000), (count,))),
        "images": (base[:-1], base[1:]),
        "images 2^32 apart": (base, normal(5, "stat.a", torch.arange(1000) + (1 << 32), (count,))),
        "words": (base[:, :-1], base[:, 1:]),
        "pairs of Box and Muller": (base[:, 0::2], base[:, 1::2]),
        "layers": (maps[1], maps[2]),
        "layers and pixels": (maps[1].flatten(1)[:, :-1], maps[2].flatten(1)[:, 1:]),
    }
    for name, (a, b) in pairs.items():
        a, b = a.double().flatten(), b.double().flatten()
        assert close_to((a * b).mean().item(), 0, 1 / len(a) ** 0.5), name
        squares = ((a.square() - 1) * (b.square() - 1)).mean().item()
        assert close_to(squares, 0, 2 / len(a) ** 0.5), name


def test_noise_of_a_layer_does_not_depend_on_other_layers():
    """One layer more, or another size of a layer, leaves all the others as they are."""
    index, device = torch.arange(FAR, FAR + 3), torch.device("cpu")
    shapes = [(4, 4), (5, 3), (8, 8), (16, 16)]
    maps = NoiseAddresses(shapes, device).draw(2, "noise", index)
    assert [tuple(m.shape) for m in maps] == [(3, 1, *shape) for shape in shapes]
    for count in range(1, len(shapes)):
        fewer = NoiseAddresses(shapes[:count], device).draw(2, "noise", index)
        assert all(torch.equal(a, b) for a, b in zip(fewer, maps, strict=False))
    other = NoiseAddresses([(32, 32), (1, 1), (8, 8), (2, 2)], device).draw(2, "noise", index)
    assert torch.equal(other[2], maps[2])
    assert not torch.equal(maps[0].flatten(), maps[2][:, :, :2].flatten()), "layers differ"
    assert torch.equal(maps[0].flatten(1), normal(2, "noise", index, (16,))), "layer 0 is the plain stream"


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_noise_by_address_is_that_of_the_maps(seed):
    """Keys and image numbers of all sizes, the signs of int64 included."""
    for purpose in ("noise", "g_main.noise", "d_main.noise"):
        index, shapes = torch.tensor([0, 5, FAR, 2**40 + 3]), [(4, 4), (5, 3), (8, 8)]
        address = noise_address(seed, purpose, index)
        assert address.dtype == torch.int64
        assert address.shape == (4, 2)
        maps = NoiseAddresses(shapes, torch.device("cpu")).draw(seed, purpose, index)
        for layer, (shape, expected) in enumerate(zip(shapes, maps, strict=True)):
            assert torch.equal(layer_noise(address, layer, shape), expected)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**60), st.integers(1, 300))
@settings(max_examples=100)
def test_permutation_is_a_permutation(seed, index, size):
    order = permutation(seed, "p", index, size)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(size))
    assert np.array_equal(order, permutation(seed, "p", index, size))


@pytest.mark.parametrize("index", [0, 3, 10**12])
def test_permutation_is_the_order_of_the_words(index, monkeypatch):
    """Over the border of what is computed at once, and where keys are equal."""
    size = 10_000
    block, low = np.arange(size), np.array([index])
    first, second, _, _ = philox4x32(block, block >> 32, low & 0xFFFFFFFF, low >> 32, 7, purpose_id("p"))
    keys = first.astype(np.uint64) << np.uint64(32) | second.astype(np.uint64)
    assert np.array_equal(permutation(7, "p", index, size), np.argsort(keys, kind="stable"))
    original = randomness._keys
    monkeypatch.setattr(randomness, "_keys", lambda *args: original(*args) % np.uint64(1000))
    assert np.array_equal(permutation(7, "p", index, size), np.argsort(keys % np.uint64(1000), kind="stable"))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**60), st.integers(1, 40))
@settings(max_examples=50)
def test_coins_are_halves_of_uniform_draws(seed, first, count):
    expected = uniform(seed, "p", torch.arange(first, first + count))[:, 0] < 0.5
    assert coins(seed, "p", first, count) == expected.tolist()


def test_permutations_differ_and_are_fair():
    assert len({permutation(s, p, i, 50).tobytes() for s in (0, 1) for p in "ab" for i in (0, 1, 1 << 32)}) == 12
    table = np.zeros((6, 6))
    for index in range(6000):
        table[np.arange(6), permutation(0, "fair", index, 6)] += 1
    chi2 = ((table - 1000) ** 2 / 1000).sum()
    assert close_to(chi2, 25, 50**0.5), "every element visits every place equally often"


# Names

PACKAGE = Path(stylegan_dist.__file__).parent
DRAWING = {"words", "uniform", "integers", "normal", "permutation", "permutations", "coins", "draw", "purpose_id"}
PHASES = ("g_main", "g_path", "d_main", "d_penalty")

LATENTS = ("samples", "generate", "evaluate", "evaluate.path0", "evaluate.path1", "pictures.truncation", "pictures.classes",
           "pictures.interpolation", "pictures.trial", "project.start", "latents.example", "edit.population", "export",
           "dcgan.standing", "augment_dataset", "game")


def purposes_in_source() -> dict[str, str]:
    """Purpose -> file, of every call of a drawing function that names its purpose, `{phase}` filled in."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = getattr(node.func, "attr", getattr(node.func, "id", None))
            if function not in DRAWING or path.name == "randomness.py":
                continue
            for argument in node.args[1:2]:  # (seed, purpose, ...)
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found[argument.value] = path.name
                elif isinstance(argument, ast.JoinedStr):
                    text = ast.unparse(argument)[2:-1]
                    if text.startswith("{phase}"):
                        found |= {text.replace("{phase}", phase): path.name for phase in PHASES}
                    elif text == "{purpose}.z":  # of `Generator.draw`
                        found |= {text.replace("{purpose}", purpose): path.name for purpose in (*PHASES, *LATENTS)}
                    elif path.parent.name == "augment":
                        of = [f"{phase}.augment.{side}" for phase in (*PHASES, "samples")
                              for side in ("real", "fake", "held_out")]
                        found |= {text.replace("{self.", "{").replace("{purpose}", purpose): path.name for purpose in of}
                    elif text == "view.noise.{number}":
                        found |= {text.replace("{number}", str(number)): path.name for number in range(20)}
                    elif text == "d_penalty.{name}_noise":
                        found |= {text.replace("{name}", penalty): path.name for penalty in ("r1", "r2")}
                    else:
                        assert text == "{purpose}.{prefix}.{name}", f"a new kind of purpose in {path}: {text}"
    return found


def init_purposes() -> set[str]:
    """The purposes of all initial values of the largest networks."""
    names = set()
    with torch.device("meta"):
        networks = {"init.g": stylegan2_generator(1024, 3, 10), "init.d": stylegan2_discriminator(1024, 3, 10)}
    for purpose, network in networks.items():
        names |= {f"{purpose}.{name}" for name, _ in itertools.chain(network.named_parameters(), network.named_buffers())}
    return names


def test_no_two_purposes_share_a_stream():
    found = purposes_in_source()
    assert {"data.shards", "data.block", "data.mirror", "samples.z", "generate.z", "g_main.z", "d_penalty.noise"} <= set(found)
    names = set(found) | init_purposes()
    assert len(names) > 150
    by_id: dict[int, str] = {}
    for name in names:
        assert purpose_id(name) not in by_id, f"{name} and {by_id[purpose_id(name)]} have the same CRC-32: rename one"
        by_id[purpose_id(name)] = name
