"""What do the native operators gain? Time, bytes and share of the copy bandwidth, next to the PyTorch reference.

    python benchmarks/ops.py
    python benchmarks/ops.py --device cuda --batch 32 --dtypes bfloat16
    python benchmarks/ops.py --threads 2 --rounds 30
    python benchmarks/ops.py --host
    python benchmarks/ops.py --operators conv,modulated --layouts nhwc

For every operator, shape, dtype and layout: forward, forward and backward, and these with the double backward of a gradient
penalty. All variants take turns, and every column is a median over the rounds, because others may use the machine. With
one thread on a CPU (the default there) it is processor time, which others hardly disturb.

    us        of the fused path
    MB        that one pass of the fused forward (or of all its passes) must move
    % copy    share of the bandwidth that copying a tensor of 64 MiB reaches here
    x ref     time of the reference / time of the fused path; below 1 the reference is faster
    x comp    the same for the reference compiled by torch.compile, with --compile; there is no double backward of it

Convolutions (conv, and modulated: with the product of matrices that demodulates) are not among the operators that are measured
unasked: they take minutes on a CPU. Their share of the copy bandwidth is small, as it should be; benchmarks/roofline.py has
their floor.

With --host, what a call costs the host: microseconds on tensors of a few hundred bytes, the least of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from stylegan_dist import ops, randomness
from stylegan_dist.ops import native

# (channels, pixels in one direction): layers of the networks of cifar10, of 256 and, the highest, of 1024 pixels
SHAPES = {"cifar10": ((512, 8), (256, 16), (128, 32)), "ffhq256": ((512, 16), (512, 32), (256, 64), (128, 128), (64, 256)),
          "ffhq1024": ((128, 256), (64, 512), (32, 1024)),
          # of StyleGAN3-T for 256 pixels, with the margins that a convolution adds
          "stylegan3": ((512, 38), (512, 54), (512, 86), (362, 150), (181, 278), (128, 278))}
MODES = ("forward", "backward", "double")
CONVOLUTIONS = ("conv", "modulated")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", choices=SHAPES, default="cifar10")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--layouts", default="nchw,nhwc")
    parser.add_argument("--operators", default=",".join(name for name in operators() if name not in CONVOLUTIONS))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="compare with the compiled reference, too; takes minutes")
    parser.add_argument("--host", action="store_true", help="measure the cost of calls instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.host:
        return print_calls(args.operators.split(","), args.rounds)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    bandwidth = copy_bandwidth(device, args.rounds)
    print(f"{name}; torch {torch.__version__}; copy {bandwidth / 1e9:.1f} GB/s; {native.native().reason}")
    print(f"{'operator':<12}{'shape':<18}{'dtype':<10}{'layout':<7}" + "".join(
        f"{mode + ' us':>13}{'MB':>9}{'% copy':>7}{'x ref':>6}" + (f"{'x comp':>7}" if compares(args.compile, mode) else "")
        for mode in MODES))
    for operator in args.operators.split(","):
        function, passes = operators()[operator]
        for channels, size in SHAPES[args.shapes]:
            for dtype in args.dtypes.split(","):
                for layout in args.layouts.split(","):
                    shape = (args.batch, channels, size, size) if operator != "dense" else (args.batch, channels)
                    if operator == "dense" and layout == "nhwc":
                        continue
                    images = operator == "fromrgb"
                    columns = measure(function, shape, getattr(torch, dtype), layout, device, args.rounds, images, args.compile)
                    line = f"{operator:<12}{'x'.join(map(str, shape)):<18}{dtype:<10}{layout:<7}"
                    for mode, (fused, reference, compiled, elements, outputs) in zip(MODES, columns, strict=True):
                        moved = passes(mode, elements, outputs) * getattr(torch, dtype).itemsize
                        line += (f"{fused * 1e6:>13.0f}{moved / 1e6:>9.2f}{100 * moved / fused / bandwidth:>7.0f}"
                                 f"{reference / fused:>6.2f}" + (f"{compiled / fused:>7.2f}" if compiled else ""))
                    print(line, flush=True)
    return 0


def print_calls(names: Sequence[str], rounds: int) -> int:
    """What calls cost the host, on a CPU: without a graph, with one, and with the backward pass."""
    torch.set_num_threads(1)
    print(f"{platform.machine()}; torch {torch.__version__}; microseconds a call, fused / reference")
    print(f"{'operator':<12}{'no graph':>16}{'forward':>16}{'backward, too':>16}")
    for name in names:
        function, _ = operators()[name]
        shape = (1, 8) if name == "dense" else (1, 3 if name == "fromrgb" else 8, 4, 4)
        x, bias = torch.randn(shape, requires_grad=True), torch.randn(8, requires_grad=True)
        cells = []
        for wanted in MODES:
            costs = []
            for path in ("everywhere", "reference"):
                with native.using(path):
                    costs.append(cost_of_call(function, x, bias, wanted, rounds))
            cells.append("{:.0f} / {:.0f}".format(*costs))
        print(f"{name:<12}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    return 0


def cost_of_call(function: Callable, x: torch.Tensor, bias: torch.Tensor, mode: str, rounds: int) -> float:
    """Microseconds: "forward" makes no graph, "backward" does, "double" runs it backwards as well."""

    def call() -> None:
        with torch.set_grad_enabled(mode != "forward"):
            y = function(x, bias)
        if mode == "double":
            torch.autograd.grad(y, (x, bias), torch.ones_like(y), allow_unused=True)

    call()
    return min(timed(call, 100, x.device) for _ in range(rounds)) * 1e6


def operators() -> dict[str, tuple[Callable, Callable]]:
    """name -> (function of x and bias, elements to move for a mode, the input's and the output's number of elements)."""

    def elementwise(mode: str, x: int, y: int) -> int:
        # forward: read x, write y; backward: read g and y, write gx; double: g', its input and y, and a backward of g
        return {"forward": 2, "backward": 5, "double": 8}[mode] * x

    def linear(mode: str, x: int, y: int) -> int:
        return {"forward": 1, "backward": 2, "double": 3}[mode] * (x + y)

    def epilogue(mode: str, x: int, y: int) -> int:
        # forward: read u, write y; backward: and read g and u, write gu; double: and read h and u, write g'
        return {"forward": x + y, "backward": 3 * x + 2 * y, "double": 5 * x + 3 * y}[mode]

    def residual(mode: str, x: int, y: int) -> int:
        # forward: read u and the residual, write y; backward: and read g and u, write gu; double: and read h and u, write g'
        return {"forward": 3, "backward": 6, "double": 9}[mode] * x

    def features(mode: str, x: int, y: int) -> int:
        # forward: write y; backward: read g, for the image and for the weights; double: write g', and a backward of g
        return {"forward": 1, "backward": 3, "double": 4}[mode] * (x + y)

    def generated(mode: str, x: int, y: int) -> int:
        # forward: read t, write z or rgb; backward: and read t and the gradient, write that of t; double: and read h, t and the
        # gradient, write what belongs to the latter two
        return {"forward": x + y, "backward": 3 * x + 2 * y, "double": 6 * x + 4 * y}[mode]

    def filtered(mode: str, x: int, y: int) -> int:
        # forward: read x, write y; backward, double: and read a gradient, write another; a mask of about x bytes is written,
        # and read, which counts as half as many elements
        return {"forward": x + y, "backward": 2 * (x + y) + x, "double": 3 * (x + y) + x + x // 2}[mode]

    return {
        "dense": (lambda x, b: ops.bias_act(x, b, "lrelu"), elementwise),
        "bias_act": (lambda x, b: ops.bias_act(x, b, "lrelu", clamp=256.0), elementwise),
        "bias_linear": (lambda x, b: ops.bias_act(x, b), elementwise),
        "up2": (lambda x, b: ops.upsample2d(x), linear),
        "down2": (lambda x, b: ops.downsample2d(x), linear),
        "filter": (lambda x, b: ops.resample2d(x, padding=(2, 1), gain=4.0), linear),
        "d_filter": (lambda x, b: ops.discriminator_epilogue(x, b, clamp=256.0, filtered=True), epilogue),
        "d_residual": (lambda x, b: ops.discriminator_epilogue(x, b, clamp=256.0, residual=x.detach()), residual),
        "g_plain": (lambda x, b: generator_layer(x, b, False, True, False), generated),
        "g_filtered": (lambda x, b: generator_layer(x, b, True, True, False), generated),
        "g_both": (lambda x, b: generator_layer(x, b, False, True, True), generated),
        "g_rgb": (lambda x, b: generator_layer(x, b, False, False, True), generated),
        "filtered": (lambda x, b: filtered_layer(x, b, 2, False), filtered),
        "filtered_up": (lambda x, b: filtered_layer(x, b, 4, False), filtered),
        "filtered_2d": (lambda x, b: filtered_layer(x, b, 2, True), filtered),
        "conv": (lambda x, b: ops.conv2d(x, kernels(x, b).to(x.dtype), padding=1), linear),
        "modulated": (modulated, linear),
        "fromrgb": (lambda x, b: ops.fromrgb(x, b[:, None, None, None].expand(-1, x.shape[1], -1, -1), b), features),
    }


def kernels(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[C, C, 3, 3], whose gradient takes a sum more than that of weights; in the format of x."""
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return bias[:, None, None, None].expand(-1, len(bias), 3, 3).contiguous(memory_format=layout)


def modulated(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A convolution of the generator, demodulated by what would be a part of the epilogue."""
    y, scale = ops.modulated_conv2d(x, kernels(x, bias), bias.expand(len(x), -1))
    return y * scale.to(y.dtype)[:, :, None, None]


def generator_layer(x: torch.Tensor, bias: torch.Tensor, filtered: bool, features: bool, colours: bool) -> torch.Tensor:
    """What follows a convolution of the generator, with noise; both results as one number where there are two."""
    n = len(x)
    ones, strength = bias.expand(n, -1), bias.detach()[:1]
    address = randomness.noise_address(0, "noise", torch.arange(n, device=x.device))
    if not ops.draws_noise(x):
        size = [x.shape[2] - filtered] * 2
        address = torch.zeros(n, 1, *size, device=x.device)  # drawn for all layers at once, which is not part of this
    layer = ops.Epilogue(ones, bias, ops.LayerNoise(address, 0), strength, filtered, 256.0)
    z, rgb = ops.generator_epilogue(x, layer, ones if features else None, ones[:, None].expand(-1, 3, -1) if colours else None)
    if z is None or rgb is None:
        return z if rgb is None else rgb
    return torch.stack((z.mean(), rgb.mean()))


def filtered_layer(x: torch.Tensor, bias: torch.Tensor, up: int, full: bool) -> torch.Tensor:
    """What follows a convolution of StyleGAN3, which doubles the size if `up` is 4; -R has a full filter downwards."""
    filters = line(6 * up, False, x.device), line(12, full, x.device)
    return ops.filtered_lrelu(x, bias, ops.Filters(*filters, up, 2, (9, 8) if up == 2 else (13, 14)), clamp=256.0)


@functools.cache
def line(taps: int, full: bool, device: torch.device) -> torch.Tensor:
    window = torch.kaiser_window(taps, False, device=device)
    window = window / window.sum()
    return window.outer(window) if full else window


def compares(compiles: bool, mode: str) -> bool:
    """Whether there is a compiled reference to compare with: a compiled function has no double backward."""
    return compiles and mode != "double"


def measure(
    function: Callable, shape: Sequence[int], dtype: torch.dtype, layout: str, device: torch.device, rounds: int, images: bool,
    compiles: bool,
) -> list[tuple[float, float, float | None, int, int]]:
    """Seconds of the fused path, the reference and the compiled one, elements of input and output, for each mode."""
    x = torch.randn((shape[0], 3, *shape[2:]) if images else shape, device=device).to(dtype)
    if layout == "nhwc":
        x = x.to(memory_format=torch.channels_last)
    bias = torch.randn(shape[1], device=device)
    x.requires_grad_(True)
    bias.requires_grad_(True)
    y = function(x, bias)
    g, h = torch.randn_like(y).requires_grad_(True), torch.randn_like(x)
    inputs = (x, bias) if torch.autograd.grad(y.sum(), bias, allow_unused=True)[0] is not None else (x,)

    def forward(call: Callable) -> None:
        with torch.no_grad():
            call(x, bias)

    def backward(call: Callable) -> None:
        torch.autograd.grad(call(x, bias), inputs, g)

    def double(call: Callable) -> None:
        first, = torch.autograd.grad(call(x, bias), (x,), g, create_graph=True)
        torch.autograd.grad(first, (g,), h)

    result = []
    for run in (forward, backward, double):
        ways = {"fused": function, "reference": function}
        if compares(compiles, run.__name__):
            torch.compiler.reset()  # after eight variants of a function it would run as it is
            ways["compiled"] = torch.compile(function, dynamic=False)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        once = max(timed(functools.partial(run, function), 1, device), 1e-6)
        repeats = max(1, min(100, int(2e-3 / once)))
        for _ in range(rounds):
            for name, times in seconds.items():
                with native.using("reference" if name == "compiled" else name):
                    run(ways[name])
                    times.append(timed(functools.partial(run, ways[name]), repeats, device))
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        result.append((medians["fused"], medians["reference"], medians.get("compiled"), x.numel(), y.numel()))
    return result


def timed(run: Callable[[], None], repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / repeats
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    for _ in range(repeats):
        run()
    return (clock() - began) / repeats


def copy_bandwidth(device: torch.device, rounds: int) -> float:
    """Bytes read and written in a second."""
    source = torch.zeros(2**24, device=device)
    target = torch.empty_like(source)
    seconds = statistics.median(timed(lambda: target.copy_(source), 4, device) for _ in range(rounds))
    return 2 * source.nbytes / seconds


if __name__ == "__main__":
    sys.exit(main())
