"""Native operators at the layers of the published recipes: real channels and widths, few rows, against plain PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch
from launching import ROOT
from native_cases import assert_close, derivatives, laid_out, needs_native_operators, numbers, wide

from stylegan_dist import ops, randomness
from stylegan_dist.config import load_config
from stylegan_dist.families.stylegan2.networks import channels_at, resolutions
from stylegan_dist.ops import native

needs_native_operators()

PRESETS = {"cifar10": 32, "ffhq256": 256, "ffhq512": 512, "ffhq1024": 1024}
ELEMENTS = 1 << 13  # of a feature map, about
CLAMP = 256.0
FEATURES = ("x", "wide", "residual", "image")  # in low precision; all else is in full


def networks():
    """[(channels, width), ...] of the feature maps of each network, from 4x4 on."""
    for name, resolution in PRESETS.items():
        config = load_config(ROOT / f"launch/presets/{name}.yaml", [])
        for c in (config.generator, config.discriminator):
            yield [(channels_at(r, c), r) for r in resolutions(resolution)]


def layers():
    """(channels, width, height, turn) of all feature maps: few rows, dtypes in one turn; in all turns, and of full height."""
    for channels, width in sorted({layer for network in networks() for layer in network}):
        few = min(width, max(4, ELEMENTS // (channels * width)))
        yield channels, width, few, 0
        for height, turn in {(few, 1), (few, 2), (width, 0)} - {(few, 0)}:
            yield pytest.param(channels, width, height, turn, marks=pytest.mark.exhaustive)


def convolutions():
    """(kind, inputs, outputs, width) of all convolutions, of a small image and of the real one."""
    kinds = set()
    for network in networks():
        for (below, small), (channels, width) in itertools.pairwise(network):
            kinds |= {("same", channels, channels, width), ("up", below, channels, small), ("down", channels, below, width),
                      ("skip", channels, below, width)}
    for kind, inputs, outputs in sorted({(*kind,) for *kind, _ in kinds}):
        yield kind, inputs, outputs, 16 if kind == "same" else 8  # from 16 pixels on some are Winograd's
    for case in sorted(kinds):
        yield pytest.param(*case, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)])


def epilogue(filtered, makes, colours):
    """The generator's, with noise."""
    def layer(x, d, bias, *rest):
        rest = list(rest)
        style = rest.pop(0) if makes else None
        noise = ops.LayerNoise(randomness.noise_address(0, "noise", torch.arange(len(x))), 3)
        strength = torch.full((1,), 0.5, dtype=d.dtype)
        return ops.generator_epilogue(x, ops.Epilogue(d, bias, noise, strength, filtered, CLAMP), style,
                                      rest[0] if colours else None)
    return layer


OPERATORS = {  # name: arguments, function
    "bias_act": ("x bias", lambda x, bias: ops.bias_act(x, bias, "lrelu", 1.0, CLAMP)),
    "up": ("x", ops.upsample2d),
    "down": ("x", ops.downsample2d),
    "d_filter": ("x bias", lambda x, bias: ops.discriminator_epilogue(x, bias, 1.0, CLAMP, None, True)),
    "d_residual": ("x bias residual", lambda x, bias, residual: ops.discriminator_epilogue(x, bias, 0.7, CLAMP, residual)),
    "fromrgb": ("image kernel bias", lambda image, kernel, bias: ops.fromrgb(image, kernel, bias, CLAMP)),
    "g_first": ("wide d bias style", epilogue(True, True, False)),
    "g_second": ("x d bias style weight", epilogue(False, True, True)),
    "g_last": ("x d bias weight", epilogue(False, False, True)),
}


@pytest.mark.parametrize(("channels", "width", "rows", "first"), list(layers()))
def test_layers_of_published_networks(channels, width, rows, first):
    """Every operator at every layer, in one dtype of three in turn."""
    n = 2 if channels * width * rows <= 4 * ELEMENTS else 1
    features = (n, channels, rows, width)
    shapes = {"x": features, "residual": features, "wide": (n, channels, rows + 1, width + 1), "image": (n, 3, rows, width),
              "kernel": (channels, 3, 1, 1), "bias": (channels,), "d": (n, channels), "style": (n, channels),
              "weight": (n, 3, channels)}
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for turn, (names, function) in enumerate(OPERATORS.values()):
        dtype = dtypes[(first + turn + width.bit_length()) % 3]
        arguments = [laid_out(numbers(k, *shapes[name]), "nhwc").to(dtype if name in FEATURES else wide(dtype))
                     for k, name in enumerate(names.split())]
        with torch.no_grad(), native.using("everywhere"):
            results = function(*arguments)
        gs = [laid_out(numbers(9 + k, *y.shape).to(y.dtype), "nhwc")
              for k, y in enumerate(results if isinstance(results, tuple) else (results,)) if y is not None]
        cotangents = [numbers(11 + k, *t.shape).to(t.dtype) for k, t in enumerate(arguments)]
        if "residual" in names:
            cotangents[-1].zero_()  # it would be added after a rounding
        with native.using("everywhere"):
            actual = derivatives(function, arguments, gs, cotangents)
        with native.using("reference"):
            expected = derivatives(function, *([t.double() for t in part] for part in (arguments, gs, cotangents)))
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, dtype, terms=100 + 4 * max(channels, n * rows * width))


CONVOLUTIONS = {
    "same": ops.modulated_conv2d,
    "up": lambda x, weight, style: ops.modulated_conv2d(x, weight, style, up=2),
    "down": lambda x, weight: ops.conv2d_resample(x, weight, down=2),
    "skip": lambda x, weight: ops.conv2d_resample(x, weight, down=2),
}


@pytest.mark.parametrize(("kind", "inputs", "outputs", "width"), list(convolutions()))
def test_convolutions_of_published_networks(kind, inputs, outputs, width):
    """Closed ones, with Winograd's and native filters among them, in float32; weights of the size that training has."""
    function, kernel = CONVOLUTIONS[kind], 1 if kind == "skip" else 3
    x, weight = numbers(0, 1, inputs, width, width), numbers(1, outputs, inputs, kernel, kernel) / (inputs**0.5 * kernel)
    arguments = [laid_out(x, "nhwc"), weight]
    if kind in ("same", "up"):
        arguments.append(numbers(2, 1, inputs))
    with torch.no_grad(), native.using("closed"):
        results = function(*(t.float() for t in arguments))
    gs = [numbers(9 + k, *y.shape) for k, y in enumerate(results if isinstance(results, tuple) else (results,))]
    cotangents = [numbers(11 + k, *t.shape) for k, t in enumerate(arguments)]
    with native.using("everywhere"):
        actual = derivatives(function, *([t.float() for t in part] for part in (arguments, gs, cotangents)))
    with native.using("reference"):
        expected = derivatives(function, *([t.float().double() for t in part] for part in (arguments, gs, cotangents)))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, torch.float32, terms=100 + width)  # roundings of a sum over all pixels add up like a random walk
