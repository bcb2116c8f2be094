"""The floor of a step: counted by hand where that is possible, and by the identities of the schedule."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from counting import Counter, Kernel, Rates, count_step, empty_index, forward_flops  # noqa: E402
from roofline import GPUS, rates_of  # noqa: E402

from stylegan_dist import ops  # noqa: E402
from stylegan_dist.config import load_config  # noqa: E402
from stylegan_dist.ops import native  # noqa: E402
from stylegan_dist.ranks import World  # noqa: E402
from stylegan_dist.training.rules import resolve  # noqa: E402

SMALL = ("run.batch=4", "generator.channel_max=64", "discriminator.channel_max=64", "generator.mapping_layers=2",
         "discriminator.mbstd_group=4", "loss.style_mixing=0")


def resolved_for(resolution: int, *overrides: str):
    index = empty_index(resolution)
    return resolve(load_config(None, [*SMALL, *overrides]), index, World(1, "cuda", bf16=True)), index


def counted(function) -> list[Kernel]:
    with Counter() as counter:
        function()
    return counter.kernels


def test_one_convolution_and_its_gradients():
    x, w = torch.zeros(2, 4, 8, 8, requires_grad=True), torch.zeros(6, 4, 3, 3, requires_grad=True)
    forward, *_ = counted(lambda: F.conv2d(x, w, padding=1))
    assert forward.flops == 2 * 2 * 6 * 64 * 4 * 9
    assert forward.bytes == 4 * (2 * 4 * 64 + 6 * 4 * 9 + 2 * 6 * 64)
    for way in ("reference", "fused") if native.native().devices else ("reference",):
        with native.using(way):
            y = ops.conv2d_resample(x, w)
            kernels = [k for k in counted(lambda y=y: torch.autograd.grad(y, (x, w), torch.ones_like(y)))
                       if k.kind == "convolution"]
            assert [k.flops for k in kernels] == [forward.flops] * 2
            assert {k.bytes for k in kernels} == {forward.bytes}
    half = counted(lambda: F.conv2d(x, w, stride=2))
    back = counted(lambda: F.conv_transpose2d(torch.zeros(2, 6, 3, 3), w, stride=2))
    assert half[0].flops == 2 * 2 * 6 * 9 * 4 * 9
    assert [k.flops for k in back if k.name == "convolution"] == [half[0].flops]


def test_bytes_of_other_operations():
    x, row = torch.zeros(8, 16), torch.zeros(16)
    assert [k.bytes for k in counted(lambda: x + row)] == [4 * (128 + 16 + 128)]
    assert [k.bytes for k in counted(lambda: x * x)] == [4 * (128 + 128)]  # one input, read once
    assert [k.bytes for k in counted(lambda: x + row.expand(8, 16))] == [4 * (128 + 16 + 128)]
    assert [k.bytes for k in counted(lambda: x.add_(1))] == [4 * 256]
    assert [k.bytes for k in counted(lambda: x.zero_())] == [4 * 128]
    assert [k.bytes for k in counted(lambda: x.view(16, 8).t()[2:])] == []
    assert [k.bytes for k in counted(lambda: torch._foreach_add_([x, x.clone()], 1.0))][-1] == 4 * 4 * 128
    product, = counted(lambda: x @ torch.zeros(16, 5).to("meta") if x.is_meta else torch.mm(x, x.t()))
    assert (product.flops, product.kind) == (2 * 8 * 16 * 8, "product")


def test_a_kernel_takes_the_longer_of_both():
    rates = Rates(low=100.0, full=10.0, bandwidth=1000.0)
    kernels = [Kernel("a", "other", 50.0, True, 100, ()), Kernel("b", "other", 50.0, False, 100, ()),
               Kernel("c", "other", 0.0, False, 3000, ())]
    assert rates.seconds(kernels) == pytest.approx(0.5 + 5.0 + 3.0)
    assert rates_of(GPUS["v100"], True).full == rates_of(GPUS["v100"], False).full


@pytest.mark.full
@pytest.mark.parametrize("path", ["reference", "fused"])
def test_flops_of_the_schedule(path):
    """In forward passes: g_main 3 G + 2 D, d_main G + 6 D, R1 6 D, path lengths 6 G of half of the images."""
    if path == "fused" and not native.native().devices:
        pytest.skip(native.native().reason)
    resolved, index = resolved_for(64)
    f = forward_flops(resolved, index)
    phases = {p.name: p for p in count_step(resolved, index, path)}
    expected = {"g_main": 3 * f["g"] + 2 * f["d"], "d_main": f["g"] + 6 * f["d"], "d_penalty": 6 * f["d"], "g_path": 3 * f["g"]}
    for name, flops in expected.items():
        assert phases[name].flops() == pytest.approx(flops, rel=0.03), name
    step = sum(p.flops() / p.interval for p in phases.values())
    assert step == pytest.approx(4.75 * f["g"] + 8.375 * f["d"], rel=0.02)


@pytest.mark.full
def test_fused_operators_move_less():
    if not native.native().devices:
        pytest.skip(native.native().reason)
    resolved, index = resolved_for(32)
    reference, fused = (count_step(resolved, index, path) for path in ("reference", "fused"))
    for a, b in zip(reference, fused, strict=True):
        assert b.bytes() < a.bytes() or a.name == "average"
        assert len(b.kernels) <= len(a.kernels)
    assert not any(k.kind == "native" for p in reference for k in p.kernels)
    assert any(k.kind == "native" and "bias_act" in k.name for p in fused for k in p.kernels)


def test_counting_leaves_nothing_behind():
    resolved, index = resolved_for(8)
    count_step(resolved, index, "reference")
    assert "meta" not in native.DTYPES
    assert "meta" not in native.native().devices


@pytest.mark.full
def test_the_script():
    done = subprocess.run(
        [sys.executable, "benchmarks/roofline.py", "launch/presets/cifar10.yaml", "--classes", "10", "--batch", "4", "--gpu",
         "a100", "generator.channel_max=32", "discriminator.channel_max=32"],
        capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert {"g_main", "d_main", "d_penalty", "step"} <= rows.keys()
    _, _, _, _, megabytes, ms, _, megabytes_fused, ms_fused, convolutions = map(float, ["0", *rows["step"][1:]])
    assert megabytes_fused < megabytes
    assert convolutions < ms_fused < ms * 1.001
    wrong = subprocess.run([sys.executable, "benchmarks/roofline.py", "nowhere.yaml"], capture_output=True, text=True,
                           timeout=600, cwd=ROOT, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
