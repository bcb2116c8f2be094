"""What `doctor` and a run say about the native operators."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from launching import finished

from stylegan_dist.doctor import gradients, operators
from stylegan_dist.doctor.asking import examine
from stylegan_dist.doctor.record import Options
from stylegan_dist.networks.layers import Arithmetic
from stylegan_dist.ops import build, native


@pytest.fixture
def elsewhere(tmp_path):
    """An environment with an empty cache and without a compiler, in which no library has been built."""
    return {"XDG_CACHE_HOME": str(tmp_path), "CXX": "", "PATH": str(tmp_path)}


def found(name):
    """A finding of the checks of the operators, in a process of their own; None where there is none of that name."""
    findings = examine([operators.CHECKS], Options(), lambda name: None, lambda one: None)
    return next((one for one in findings if one.name == name), None)


@pytest.mark.full
def test_without_a_compiler_it_says_so(elsewhere, monkeypatch):
    for name, value in elsewhere.items():
        monkeypatch.setenv(name, value)
    path = found("operators, cpu")
    assert path.status == "warning"
    assert re.search(r"reference .*no C\+\+ compiler.*CXX", path.text)
    assert found("compilers").text.startswith("C++: none")
    assert found("gradients, cpu") is None


@pytest.mark.full
@pytest.mark.parametrize(("mode", "said"), [
    ("require", "STYLEGAN_DIST_BUILD=require, but there are no native operators: no C++ compiler"),
    ("perhaps", "STYLEGAN_DIST_BUILD=perhaps: use auto, require or never"),
])
def test_what_stops_a_run_is_an_error(mode, said, elsewhere, monkeypatch):
    for name, value in (elsewhere | {"STYLEGAN_DIST_BUILD": mode}).items():
        monkeypatch.setenv(name, value)
    wrong = found("operators")
    assert wrong.status == "error"
    assert wrong.text.startswith(said)


def test_wrong_operators_are_found(monkeypatch):
    def crooked(x, bias=None, activation="linear", gain=1.0, clamp=None):
        assert not any(setting.allow_tf32 for setting in settings)
        return honest(x, bias, activation, gain * 1.01 if native._selected == "everywhere" else gain, clamp)

    if not native.native().devices:
        pytest.skip(native.native().reason)
    from stylegan_dist import ops

    honest, settings = ops.bias_act, (torch.backends.cuda.matmul, torch.backends.cudnn)
    monkeypatch.setattr(ops, "bias_act", crooked)
    with Arithmetic(tf32=True):  # which would find differences of its own
        differences = {what: difference > limit for what, difference, limit in gradients.check_operators("cpu")}
        assert all(setting.allow_tf32 for setting in settings)
    assert any(differences.values()), differences


@pytest.mark.full
def test_a_run_that_requires_fused_operators_stops_without_them(elsewhere, labelled_shards, tmp_path):
    train = [sys.executable, "-m", "stylegan_dist.cli", "train", f"data.shards={labelled_shards}",
             f"run.dir={tmp_path / 'run'}", "run.device=cpu", "--dry-run"]
    for setting in ("ops.require_fused=true", "ops.path=fused"):
        refused = finished([*train, setting], timeout=900, **elsewhere)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {setting}, but")
        assert "no C++ compiler" in refused.stderr
        assert refused.stderr.count("\n") == 1
    allowed = finished(train, timeout=900, **elsewhere)
    assert allowed.returncode == 0, allowed.stderr
    assert "path: reference" in allowed.stdout


@pytest.mark.full
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_a_dry_run_compiles_nothing(labelled_shards, tmp_path):
    """It says what a run will do, also where the configuration insists on it."""
    train = [sys.executable, "-m", "stylegan_dist.cli", "train", f"data.shards={labelled_shards}", "run.device=cpu",
             "run.batch=8", "generator.channel_base=256", "discriminator.channel_base=256", "--dry-run"]
    for setting in ("ops.path=fused", "ops.require_fused=true"):
        planned = finished([*train, setting], timeout=100, XDG_CACHE_HOME=str(tmp_path), STYLEGAN_DIST_BUILD="auto")
        assert planned.returncode == 0, planned.stderr
        assert "path: fused" in planned.stdout
        assert "fused (not compiled yet: a run does that at its start)" in planned.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
