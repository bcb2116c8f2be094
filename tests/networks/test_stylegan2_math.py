"""The networks against the plain form of their mathematics in reference.py, and their precision policy."""

from __future__ import annotations

import functools
import math

import pytest
import reference
import torch
from small_networks import stylegan2_discriminator, stylegan2_generator
from torch import nn

from stylegan_dist import ops
from stylegan_dist.families.stylegan2.networks import Discriminator, Generator, SynthesisLayer, ToRGB, minibatch_std
from stylegan_dist.networks.layers import Conv2d, Dense, Precision, initialize

N = 4
# (resolution, image channels, classes)
SHAPES = [(8, 1, 0), (8, 3, 3), (16, 4, 0), (16, 3, 5), (32, 3, 0), (32, 1, 2)]
TIGHT = 1e-11


def make_generator(resolution: int, channels: int, classes: int, **options) -> Generator:
    """A small generator with random values; 32 px have fewer channels than 16 px, which have fewer than 8 px."""
    options = {"z_dim": 5, "w_dim": 6, "mapping_layers": 3, "channel_base": 96, "channel_max": 8} | options
    return reference.randomize(stylegan2_generator(resolution, channels, classes, **options), seed=resolution + channels)


def make_discriminator(resolution: int, channels: int, classes: int, **options) -> Discriminator:
    options = {"mapping_layers": 2, "channel_base": 96, "channel_max": 8, "mbstd_group": 2} | options
    return reference.randomize(stylegan2_discriminator(resolution, channels, classes, **options), seed=resolution + channels)


def inputs(network: Generator | Discriminator, resolution: int, channels: int, classes: int):
    """Latents, labels, noise maps and images, float64."""
    z = reference.normals(1, N, getattr(network, "z_dim", 1))
    label = torch.arange(N) * 7 % classes if classes else None
    noise = [reference.normals(r + i, N, 1, r, r) for i, r in enumerate(reference.noise_shapes(resolution))]
    images = reference.normals(2, N, channels, resolution, resolution)
    return z, label, noise, images


def mapped(noise: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    return [x.to(dtype) for x in noise]


@pytest.mark.parametrize("shape", SHAPES)
def test_generator_equals_the_reference(shape):
    g = make_generator(*shape)
    z, label, noise, _ = inputs(g, *shape)
    expected = reference.generator(reference.weights_of(g), z, label, noise)
    assert expected.shape == (N, shape[1], shape[0], shape[0])
    assert reference.difference(g(z.float(), label, mapped(noise, torch.float32)), expected) < 1e-5
    assert reference.difference(g.double()(z, label, noise), expected) < TIGHT


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
@pytest.mark.parametrize("shape", SHAPES)
def test_discriminator_equals_the_reference(shape, architecture):
    d = make_discriminator(*shape, architecture=architecture)
    _, label, _, images = inputs(d, *shape)
    expected = reference.discriminator(reference.weights_of(d), images, label, group=2)
    assert expected.shape == (N,)
    assert reference.difference(d(images.float(), label), expected) < 1e-5
    assert reference.difference(d.double()(images, label), expected) < TIGHT


@pytest.mark.parametrize("shape", [(16, 3, 5), (32, 1, 0)])
def test_generator_gradients_equal_the_reference(shape):
    g = make_generator(*shape).double()
    z, label, noise, probe = inputs(g, *shape)
    state = reference.weights_of(g)
    z, z_reference = z.clone().requires_grad_(True), z.clone().requires_grad_(True)
    (g(z, label, noise) * probe).sum().backward()
    (reference.generator(state, z_reference, label, noise) * probe).sum().backward()
    differences = reference.gradient_differences(g, state)
    assert all(p.grad.any() for p in g.parameters()), "every parameter has an influence"
    assert max(differences.values()) < 1e-9, differences
    assert reference.difference(z.grad, z_reference.grad) < 1e-9


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
@pytest.mark.parametrize("shape", [(16, 3, 5), (32, 1, 0)])
def test_discriminator_gradients_equal_the_reference(shape, architecture):
    d = make_discriminator(*shape, architecture=architecture).double()
    _, label, _, images = inputs(d, *shape)
    state = reference.weights_of(d)
    images, images_reference = images.clone().requires_grad_(True), images.clone().requires_grad_(True)
    probe = reference.normals(9, N)
    (d(images, label) * probe).sum().backward()
    (reference.discriminator(state, images_reference, label, group=2) * probe).sum().backward()
    differences = reference.gradient_differences(d, state)
    assert all(p.grad.any() for p in d.parameters()), "every parameter has an influence"
    assert max(differences.values()) < 1e-9, differences
    assert reference.difference(images.grad, images_reference.grad) < 1e-9


def test_one_noise_map_may_serve_all_samples_and_none_means_none():
    g = make_generator(8, 3, 0).double()
    z, _, noise, _ = inputs(g, 8, 3, 0)
    shared = [x[:1] for x in noise]
    assert reference.difference(g(z, None, shared), g(z, None, [x.expand(N, -1, -1, -1) for x in shared])) < TIGHT
    state = reference.weights_of(g)
    assert reference.difference(g(z), reference.generator(state, z, None, None)) < TIGHT
    buffers = [state[f"synthesis.{layer}.noise_const"][None, None] for layer in ("b4.conv1", "b8.conv0", "b8.conv1")]
    assert all(torch.equal(a, b) for a, b in zip(g.synthesis.constant_noise(), buffers, strict=True))


def test_every_w_drives_its_own_layers():
    g = make_generator(16, 3, 0).double()
    _, _, noise, _ = inputs(g, 16, 3, 0)
    ws = reference.normals(3, N, g.num_ws, 6)
    state = reference.below(reference.weights_of(g), "synthesis.")
    assert reference.difference(g.synthesis(ws, noise), reference.synthesis(state, ws, noise)) < TIGHT


@pytest.mark.parametrize("recompute", [0, 8])
def test_every_parameter_is_used_inside_the_forward_of_its_own_module_alone(recompute):
    """Engines that spread parameters fetch those of a module before its forward and give them back after it."""
    shape = (16, 3, 5)
    networks = [make_generator(*shape, recompute=recompute), make_discriminator(*shape, recompute=recompute)]
    z, label, noise, images = inputs(networks[0], *shape)
    arguments = [(z.float(), label, mapped(noise, torch.float32)), (images.float(), label)]
    for network, given in zip(networks, arguments, strict=True):
        expected = network(*given)
        values = {name: p.detach().clone() for name, p in network.named_parameters()}
        for prefix, module in network.named_modules():
            own = {name: f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}

            def fetch(module: nn.Module, *_: object, own: dict[str, str] = own) -> None:
                for name, full_name in own.items():
                    getattr(module, name).data = values[full_name]  # noqa: B023 - used inside the loop

            def give_back(module: nn.Module, *_: object, own: dict[str, str] = own) -> None:
                for name in own:
                    getattr(module, name).data = torch.full_like(getattr(module, name), math.nan)

            module.register_forward_pre_hook(fetch)
            module.register_forward_hook(give_back)
            give_back(module)
        assert all(p.isnan().all() for p in network.parameters())
        assert torch.equal(network(*given), expected)


@pytest.mark.parametrize("psi", [0.0, 0.3, 1.0, 1.5])
def test_truncation(psi):
    g = make_generator(8, 3, 3).double()
    z, label, noise, _ = inputs(g, 8, 3, 3)
    state = reference.weights_of(g)
    w = reference.truncated(reference.mapping(reference.below(state, "mapping."), z, label), state["w_avg"], psi)
    expected = reference.synthesis(reference.below(state, "synthesis."), torch.stack([w] * 4, 1), noise)
    assert reference.difference(g(z, label, noise, truncation=psi), expected) < TIGHT


@pytest.mark.parametrize(("resolution", "count"), [(8, 4), (16, 6), (256, 14), (1024, 18)])
def test_num_ws(resolution, count):
    with torch.device("meta"):
        g = stylegan2_generator(resolution, 3)
    assert g.num_ws == g.synthesis.num_ws == count == reference.num_ws(g.state_dict())
    assert g.synthesis.noise_shapes == [(r, r) for r in reference.noise_shapes(resolution)]
    assert len(g.synthesis.noise_shapes) == count - 1


@pytest.mark.parametrize(
    ("resolution", "channel_base", "g_options", "d_options", "g_count", "d_count"),
    [
        (1024, 32768, {}, {}, 30_370_060, 29_012_513),
        (512, 32768, {}, {}, 30_276_583, 28_982_849),
        (256, 16384, {}, {}, 24_767_458, 24_001_089),
        (32, 32768, {"mapping_layers": 2, "classes": 10}, {"architecture": "orig", "classes": 10},
         20_215_315, 23_089_664),
    ],
)
def test_parameter_counts_of_the_papers(resolution, channel_base, g_options, d_options, g_count, d_count):
    with torch.device("meta"):
        g = stylegan2_generator(resolution, 3, channel_base=channel_base, **g_options)
        d = stylegan2_discriminator(resolution, 3, channel_base=channel_base, **d_options)
    assert sum(p.numel() for p in g.parameters()) == g_count
    assert sum(p.numel() for p in d.parameters()) == d_count


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_minibatch_std(group):
    x = reference.normals(0, 6, 3, 4, 4)
    out = minibatch_std(x, group)
    assert reference.difference(out, reference.minibatch_std(x, group)) < 1e-14
    # Rearranging images inside a group changes nothing; the level of a group is not that of another.
    assert reference.difference(minibatch_std(x.flip(0), group)[:, 3], out.flip(0)[:, 3]) < 1e-14
    assert len({round(v, 9) for v in out[:, 3].flatten().tolist()}) == (1 if group == 1 else 6 // group)


def test_initial_values():
    g = stylegan2_generator(16, 3, 3, mapping_layers=2, channel_base=1024, channel_max=64)
    d = stylegan2_discriminator(16, 3, 3, mapping_layers=2, channel_base=1024, channel_max=64)
    for network, purpose in ((g, "test.g"), (d, "test.d")):
        initialize(network, 7, purpose)
        for name, value in network.named_parameters():
            if name.endswith("affine.bias"):
                assert (value == 1).all(), name
            elif name.endswith(("bias", "noise_strength")):
                assert (value == 0).all(), name
            else:
                scale = 100 if "mapping.layers." in name else 1
                spread = 4 / math.sqrt(2 * value.numel())
                assert abs(value.std().item() / scale - 1) < spread, name
                assert abs(value.mean().item() / scale) < 4 / math.sqrt(value.numel()), name
    values = [tuple(p.flatten()[:4].tolist()) for n, p in (*g.named_parameters(), *d.named_parameters()) if "weight" in n]
    assert len(values) == len(set(values)), "no two layers start alike"
    z = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    w = g.mapping(z, torch.arange(64) % 3)
    assert 0.5 < w.square().mean().item() < 2, "signals keep their size"


# Precision


def output_dtypes(network: nn.Module, *arguments) -> dict[str, torch.dtype]:
    """Dtype of the output of every layer in one forward pass; of a generator's, of the features."""
    seen: dict[str, torch.dtype] = {}
    layers = (SynthesisLayer, Conv2d, Dense)

    def see(_m: nn.Module, _i: object, output: torch.Tensor | tuple, name: str) -> None:
        features = output[0] if isinstance(output, tuple) else output
        if features is not None:  # the last layer makes colours alone
            seen[name] = features.dtype

    hooks = [module.register_forward_hook(functools.partial(see, name=name))
             for name, module in network.named_modules() if isinstance(module, layers)]
    network(*arguments)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("resolution", "top", "low_resolutions"),
    [(64, 4, {8, 16, 32, 64}), (64, 2, {32, 64}), (16, 4, {8, 16}), (32, 1, {32}), (32, 0, set())],
)
def test_which_blocks_run_in_low_precision(resolution, top, low_resolutions):
    precision = Precision(torch.bfloat16, top_resolutions=top)
    shape = (resolution, 3, 2)
    g, d = make_generator(*shape, precision=precision), make_discriminator(*shape, precision=precision)
    z, label, noise, images = inputs(g, *shape)
    expected_low = {f"b{r}" for r in low_resolutions}
    dtypes = output_dtypes(g, z.float(), label, mapped(noise, torch.float32))
    for name, dtype in dtypes.items():
        in_low_block = any(part in expected_low for part in name.split(".")) and "affine" not in name
        assert dtype == (torch.bfloat16 if in_low_block else torch.float32), name
    dtypes = output_dtypes(d, images.float(), label)
    for name, dtype in dtypes.items():
        in_low_block = name.split(".")[0] in expected_low or (name == "fromrgb" and low_resolutions)
        assert dtype == (torch.bfloat16 if in_low_block else torch.float32), name
    assert {"conv", "dense", "out", "mapping.embed", "fromrgb"} <= dtypes.keys()


@pytest.mark.parametrize(("low", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.006)])
def test_low_precision_is_close_and_sums_rgb_in_full(low, tolerance):
    shape = (32, 3, 2)
    precision = Precision(low, clamp=256.0)
    g, d = make_generator(*shape, precision=precision), make_discriminator(*shape, precision=precision)
    z, label, noise, images = inputs(g, *shape)
    pictures = g(z.float(), label, mapped(noise, torch.float32))
    expected = reference.generator(reference.weights_of(g), z, label, noise, clamp=256.0)
    assert pictures.dtype == torch.float32
    assert 1e-5 < reference.difference(pictures, expected) < tolerance
    assert (pictures != pictures.to(low).float()).float().mean() > 0.5, "the sum of RGB is kept in float32"
    d.conv.register_forward_pre_hook(lambda _m, arguments: epilogue.append(arguments[0]))
    epilogue: list[torch.Tensor] = []
    logits = d(images.float(), label)
    assert logits.dtype == torch.float32
    statistic = reference.minibatch_std(epilogue[0][:, :-1].double(), 2)[:, -1]
    assert reference.difference(epilogue[0][:, -1], statistic) < 1e-6, "the minibatch statistic is computed in float32"
    expected = reference.discriminator(reference.weights_of(d), images, label, group=2, clamp=256.0)
    assert 1e-6 < reference.difference(logits, expected) < tolerance


def modulated(x: torch.Tensor, weight: torch.Tensor, style: torch.Tensor, up: int = 1) -> torch.Tensor:
    """The whole modulated convolution, filter and demodulation included."""
    style = ops.bounded_style(style, x.dtype)
    x, demodulation = ops.modulated_conv2d(x * style.to(x.dtype)[:, :, None, None], weight, style, up)
    x = ops.resample2d(x, padding=(1, 1), gain=4.0) if up == 2 else x
    return x * demodulation.to(x.dtype)[:, :, None, None]


@pytest.mark.parametrize("up", [1, 2])
def test_float16_modulation_does_not_overflow(up):
    x = reference.normals(0, 3, 16, 8, 8) * 50
    weight, style = reference.normals(1, 5, 16, 3, 3) * 300, reference.normals(2, 3, 16) * 300
    expected = reference.modulated_conv(x, weight, style, up)
    unnormalised = nn.functional.conv2d((x.half() * style.half()[:, :, None, None]), weight.half(), padding=1)
    assert not unnormalised.isfinite().all(), "the values are large enough for this test"
    out = modulated(x.half(), weight.float(), style.float(), up)
    assert out.dtype == torch.float16
    assert reference.difference(out, expected) < 5e-3


def test_float16_modulation_is_blind_to_the_scale_of_weights_and_styles():
    x, weight, style = reference.normals(0, 3, 4, 8, 8), reference.normals(1, 5, 4, 3, 3), reference.normals(2, 3, 4)
    expected = reference.modulated_conv(x, weight, style)
    for weight_scale, style_scale in ((1, 1), (1e3, 1), (1, 1e3), (-1, -20)):
        out = modulated(x.half(), (weight * weight_scale).float(), (style * style_scale).float())
        sign = math.copysign(1, weight_scale * style_scale)
        assert reference.difference(sign * out, expected) < 5e-3


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
def test_clamp(architecture):
    clamp, shape = 0.6, (16, 3, 0)
    precision = Precision(clamp=clamp)
    g = make_generator(*shape, precision=precision).double()
    d = make_discriminator(*shape, precision=precision, architecture=architecture).double()
    z, label, noise, images = inputs(g, *shape)
    expected = reference.generator(reference.weights_of(g), z, label, noise, clamp)
    assert reference.difference(g(z, label, noise), expected) < TIGHT
    expected = reference.discriminator(reference.weights_of(d), images, label, 2, clamp)
    assert reference.difference(d(images, label), expected) < TIGHT

    peaks: dict[str, float] = {}
    for network in (g, d):
        for name, module in network.named_modules():
            if isinstance(module, SynthesisLayer | ToRGB | Conv2d):
                def seen(module, arguments, given, out, name=name):
                    if isinstance(module, SynthesisLayer):
                        if (style := arguments[3]) is None:  # the last one gives colours alone
                            return
                        out = out[0] / style[:, :, None, None]
                    elif isinstance(module, ToRGB):
                        out = out[1]
                    peaks[name] = (out - given.get("residual", 0)).abs().max().item()

                module.register_forward_hook(seen, with_kwargs=True)
    g(z, label, noise)
    d(images, label)
    for name, peak in peaks.items():
        half = math.sqrt(0.5) if architecture == "resnet" and name in ("b16.conv1", "b8.conv1") else 1.0
        if not name.endswith("skip"):
            assert peak == pytest.approx(clamp * half, abs=1e-12), name


def test_channels_last_gives_equal_results():
    shape = (16, 3, 2)
    layouts: list[bool] = []
    results = []
    for channels_last in (False, True):
        precision = Precision(channels_last=channels_last)
        g = make_generator(*shape, precision=precision).double()
        d = make_discriminator(*shape, precision=precision).double()
        z, label, noise, _ = inputs(g, *shape)
        if channels_last:
            for block in (g.synthesis.b16.conv0, d.b16):
                block.register_forward_pre_hook(
                    lambda _m, i: layouts.append(i[0].is_contiguous(memory_format=torch.channels_last))
                )
        images = g(z, label, noise)
        logits = d(images, label)
        logits.sum().backward()
        results.append([images, logits, *(p.grad for p in (*g.parameters(), *d.parameters()))])
    assert layouts == [True, True]
    for plain, last in zip(*results, strict=True):
        assert reference.difference(last, plain) < 1e-9
