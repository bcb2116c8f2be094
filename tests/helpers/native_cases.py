"""What the tests of native operators have in common: inputs in every layout, derivatives, bounds of rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from stylegan_dist.ops import native
from stylegan_dist.ops.fused import NAMESPACE

T = TypeVar("T")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("nchw", "nhwc", "strided")


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "nhwc" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack((x, x), dim=-1)[..., 0]
    return x.contiguous()


def wide(dtype: torch.dtype) -> torch.dtype:
    """Of biases, weights and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def derivatives(
    function: Callable[..., Tensor | tuple[Tensor | None, ...]], arguments: Sequence[Tensor], g: Tensor | Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> list[Tensor]:
    """function(*arguments), its gradients along g, and the gradients of those along `cotangents`, to g and all arguments.

    A function of several results has a g for each that is not None.
    """
    leaves = [t.detach().requires_grad_(True) for t in arguments]
    gs = [t.detach().requires_grad_(True) for t in ([g] if isinstance(g, Tensor) else g)]
    results = function(*leaves)
    ys = [y for y in (results if isinstance(results, tuple) else (results,)) if y is not None]
    first = torch.autograd.grad(ys, leaves, gs, create_graph=True)
    pairs = [(a, h) for a, h in zip(first, cotangents, strict=True) if a.requires_grad]
    second = torch.autograd.grad([a for a, _ in pairs], [*gs, *leaves], [h for _, h in pairs], allow_unused=True)
    return [*ys, *first, *(torch.zeros_like(t) if s is None else s for s, t in zip(second, [*gs, *leaves], strict=True))]


def native_calls(function: Callable[[], T]) -> tuple[T, Counter[str]]:
    """Its result, and how often each native operator has run in it, compiled or not."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        result = function()
    return result, Counter(event.name for event in seen.events() if event.name.startswith(f"{NAMESPACE}::"))


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, terms: float) -> None:
    """Within the rounding of the result's dtype, and `terms` roundings of its computation in float32 or float64.

    Each is relative to the size of the tensor: a sum's error is that of its largest parts.
    """
    unit = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}.get(actual.dtype, 0) or torch.finfo(actual.dtype).eps / 2
    inner = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    scale = expected.abs().max().item() if expected.numel() else 0
    tiny = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps  # float16 has few small numbers
    bound = unit * expected.abs() + (terms * inner * max(scale, 1)) + tiny
    assert actual.shape == expected.shape
    assert bool(((actual.double() - expected).abs() <= bound).all()), ((actual.double() - expected).abs() - bound).max()


def equal_for_any_number_of_threads(results: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """results(), the same bits on every repetition."""
    found = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        try:
            found.append(results())
        finally:
            torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    return found[0]


def needs_native_operators() -> None:
    """Skip the test file that calls this while it is imported, where there are none."""
    if not native.native().devices:
        pytest.skip(f"no native operators: {native.native().reason}", allow_module_level=True)


def passes_on_cuda_sources(test_file: str) -> None:
    """Run a test file where the CUDA launchers and thread bodies are compiled as loops on the CPU."""
    if os.environ.get("STYLEGAN_DIST_EMULATE"):
        pytest.skip("this is that run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test_file,
         # The formulas of the derivatives are the same ones; whether the kernels in them are, the comparisons tell.
         "-k", "not compile and not opcheck and not gradcheck and not cuda_sources"],
        env=os.environ | {"STYLEGAN_DIST_EMULATE": "1"}, capture_output=True, text=True, timeout=1500, check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
