"""What this machine has for training, and whether its native operators compute what they should."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator

import torch

from stylegan_dist import __version__
from stylegan_dist.families.stylegan2.networks import Discriminator, Generator
from stylegan_dist.machine import available_cores, available_memory, supports_bf16
from stylegan_dist.networks.layers import Arithmetic, Precision, initialize
from stylegan_dist.ops import build, native

LIBRARIES = ("accelerate", "deepspeed", "webdataset", "wandb", "pillow", "numpy", "safetensors")
# Largest difference of gradients, relative to the largest gradient of a network.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def machine_facts() -> Iterator[tuple[str, str]]:
    """(name, value) pairs for people."""
    yield "stylegan_dist", __version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "PyTorch", torch.__version__ + (f", built with CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA")
    for name in LIBRARIES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not there"
    memory = available_memory(torch.device("cpu"))
    yield "CPU", f"{available_cores()} cores, {memory / 2**30:.0f} GiB of memory free"
    if not torch.cuda.is_available():
        yield "GPU", "none that PyTorch can use"
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        yield f"GPU {number}", (f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}, "
                                f"bfloat16 {'yes' if supports_bf16('cuda') else 'no'}")
    yield "C++ compiler", build.compiler() or "none (install g++, or set CXX)"
    yield "nvcc", build.nvcc() or "none (install the CUDA toolkit, or set CUDA_HOME)"
    for device in device_types():
        yield f"operators, {device}", str(native.path(device, "fused"))
        yield f"ops.path=auto, {device}", str(native.path(device))


def device_types() -> list[str]:
    """Those that PyTorch can use here."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def check_operators(device: str) -> Iterator[tuple[str, float, float]]:
    """Train-like gradients of small networks, with native operators and with those of PyTorch.

    Yields: what was compared, the relative difference, and how large it may be.
    """
    for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        precision = Precision(low=dtype, channels_last=True)
        g = Generator(32, 3, z_dim=32, w_dim=32, channel_base=1024, channel_max=32, precision=precision)
        d = Discriminator(32, 3, channel_base=1024, channel_max=32, mbstd_group=2, precision=precision)
        for network, name in ((g, "doctor.g"), (d, "doctor.d")):
            initialize(network, 0, name)
            network.to(device)
        for what, network in (("generator", g), ("path length", g), ("discriminator", d), ("R1", d)):
            wanted = _gradients(what, g, d, network, "reference")
            found = _gradients(what, g, d, network, "everywhere")
            yield f"{device} {str(dtype).removeprefix('torch.')} {what}", _difference(found, wanted), TOLERANCE[dtype]


def _gradients(what: str, g: Generator, d: Discriminator, network: torch.nn.Module, path: str) -> list[torch.Tensor]:
    device = g.w_avg.device
    z = torch.linspace(-2, 2, 4 * 32, device=device).view(4, 32)
    with native.using(path), Arithmetic(tf32=False):  # whose rounding is larger than what the check allows
        if what in ("generator", "path length"):
            ws = g.mapping(z, None)[:, None].expand(-1, g.num_ws, -1)
            images = g.synthesis(ws, g.synthesis.constant_noise())
            loss = images.square().mean()
            if what == "path length":
                (slope,) = torch.autograd.grad(images.sum(), ws, create_graph=True)
                loss = slope.square().sum()
        else:
            images = torch.linspace(-1, 1, 4 * 3 * 32 * 32, device=device).view(4, 3, 32, 32).sin().requires_grad_()
            loss = d(images).sum()
            if what == "R1":
                (slope,) = torch.autograd.grad(loss, images, create_graph=True)
                loss = slope.square().sum()
        found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return [torch.zeros(()) if gradient is None else gradient.float().cpu() for gradient in found]


def _difference(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    scale = max(float(b.abs().max()) for b in wanted)
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)) / scale
