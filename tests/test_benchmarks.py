"""The measurements run, on a CPU as well, and their tables say what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stylegan_dist.ops import native

pytestmark = pytest.mark.full

ROOT = Path(__file__).parent.parent
SMALL = ("launch/presets/cifar10.yaml", "--classes", "10", "--rounds", "1", "run.batch=4", "run.threads=1", "run.device=cpu",
         "generator.channel_max=16", "discriminator.channel_max=16", "loss.path_length_weight=2")


def run(script: str, *arguments: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, f"benchmarks/{script}.py", *arguments], capture_output=True, text=True, timeout=900,
                          cwd=ROOT, check=False)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stderr if code else done.stdout


def test_step():
    ways = ["reference", "fused"] if native.native().devices else ["reference"]
    lines = run("step", *SMALL, "--ways", ",".join(ways)).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    phases = {name: [float(cell) for cell in rows[name]]
              for name in ("g_main", "g_path", "d_main", "d_penalty", "average", "step")}
    for every, floor, *columns in phases.values():
        assert len(columns) == 2 * len(ways)
        assert every in (1, 4, 16)
        for ms, times in zip(columns[::2], columns[1::2], strict=True):
            assert times == pytest.approx(ms / floor, rel=0.5)  # the floor has two digits
    parts = [row for name, row in phases.items() if name != "step"]
    for column in (1, 2, *([4] if len(ways) == 2 else [])):
        assert phases["step"][column] == pytest.approx(sum(row[column] / row[0] for row in parts), abs=0.05)
    assert float(rows["img/s"][1]) == pytest.approx(4e3 / phases["step"][2], rel=0.02)
    assert run("step", *SMALL, "--ways", "quick", code=2).startswith("error: --ways quick: use some of reference, compile, ")


def test_ops():
    if not native.native().devices:
        pytest.skip(native.native().reason)
    arguments = ("--operators", "d_filter,fromrgb,modulated", "--dtypes", "float32", "--layouts", "nhwc", "--batch", "2",
                 "--rounds", "2")
    head, columns, *rows = run("ops", *arguments, "--device", "cpu").splitlines()
    assert "GB/s" in head
    assert columns.split()[:4] == ["operator", "shape", "dtype", "layout"]
    assert [row.split()[0] for row in rows] == ["d_filter"] * 3 + ["fromrgb"] * 3 + ["modulated"] * 3
    cells = [cell for row in rows for i, cell in enumerate(row.split()[4:]) if i % 4 != 2]  # a small share of the copy is 0
    assert all(float(cell) > 0 for cell in cells)


def test_metrics():
    """Ours and the plain way agree."""
    _, columns, *rows = run("metrics", "--samples", "100", "--width", "32", "--rounds", "1").splitlines()
    assert columns.split()[:3] == ["score", "s", "MB"]
    assert [row.split()[0] for row in rows] == ["moments", "frechet", "few", "kernel", "manifold", "inception"]
    differ = columns.split().index("differ") - 2  # two names of columns before it are of two words
    assert all(float(row.split()[differ]) < 1e-5 for row in rows)


def test_ops_host():
    if not native.native().devices:
        pytest.skip(native.native().reason)
    _, _, row = run("ops", "--host", "--operators", "d_filter", "--rounds", "1").splitlines()
    name, *cells = row.replace("/", "").split()
    assert name == "d_filter"
    assert [float(cell) > 0 for cell in cells] == 6 * [True]


def test_judgement(labelled_shards: Path, tmp_path: Path, monkeypatch):
    """It says the same again from the features that it has kept. Their order means nothing here: these are no photographs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table, again = (run("judgement", str(labelled_shards), "--count", "10") for _ in range(2))
    assert table == again
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4  # of the reals, and three ways to spoil images
    _, _, columns, *rows = table.splitlines()
    assert columns.split()[:2] == ["set", "FD"]
    values = {row[:16].strip(): [float(cell) for cell in row[16:].split()] for row in rows[:6]}
    assert list(values) == ["reals", "missing classes", "blur", "repeated", "JPEG", "noise"]
    assert values["reals"][1] < min(values["JPEG"][1], values["noise"][1])
    assert "order by KID: reals < missing classes < blur < JPEG < noise: " in table
    assert "FD / formula" in table
    assert "torch-fidelity" in table
    assert "DIFFERS" not in table
    assert run("judgement", str(labelled_shards), "--count", "13", code=2).startswith("error: --count 13 must be ")
