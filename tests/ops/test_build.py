"""Which library is built, once, and which is found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylegan_dist.ops import build, native

HERE = Path(torch.__file__).parent
ONCE = f"""import sys; from pathlib import Path; sys.path.append({str(build.SOURCES.parent)!r}); import build
print(build.build_once(build.Torch(Path(sys.argv[1]), '2.11.0', None), Path(sys.argv[2])))"""

LOADED = """import sys, torch
torch.ops.load_library(sys.argv[1])
x, bias = torch.randn(2, 3, 4, 4), torch.randn(3)
y = torch.ops.stylegan_dist.bias_act(x, bias, 0.2, 2.0, -1.0)
torch.testing.assert_close(y, 2 * torch.nn.functional.leaky_relu(x + bias[:, None, None], 0.2))
for name in ("bias_act", "resample2d", "discriminator_epilogue", "generator_epilogue", "fromrgb", "filtered_lrelu",
             "filtered_lrelu_linear"):
    torch.library.get_kernel(f"stylegan_dist::{name}", "CUDA")  # raises where there is none
print("good")
"""

PATH = """from stylegan_dist.errors import InputError
from stylegan_dist.ops import native
try:
    print(native.path("cpu"))
except InputError as error:
    print(f"error: {error}")
"""


def some_torch(version: str, cuda: str | None) -> build.Torch:
    return build.Torch(HERE, version, cuda)


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """A function that puts an nvcc of a release into this environment, or none."""

    def put(release: str | None) -> None:
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        program = tmp_path / "cuda/bin/nvcc"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\necho release {release}")
        program.chmod(0o755 if release else 0o644)

    return put


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that writes down that it was called, takes its time, and makes what it is asked for, unless told to fail."""
    program, calls = tmp_path / "slow-c++", tmp_path / "calls"
    program.write_text(f"""#!/bin/sh
echo called >> {calls}
sleep 0.3
if [ -e {tmp_path}/broken ]; then echo "error: this one is broken"; exit 1; fi
while [ "$1" != -o ]; do shift; done
echo > "$2"
""")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    calls.touch()
    return lambda: len(calls.read_text().splitlines())


def test_versions(tmp_path):
    with pytest.raises(build.CannotBuild, match="no PyTorch"):
        build.Torch.at(tmp_path)
    version = tmp_path / "version.py"
    version.write_text("__version__ = '2.10.3+cu130'\ncuda: Optional[str] = '13.0'\n")
    with pytest.raises(build.CannotBuild, match=r"2\.10\.3\+cu130 is older than 2\.11"):
        build.Torch.at(tmp_path)
    version.write_text("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    assert build.Torch.at(tmp_path) == build.Torch(tmp_path, "2.11.0+cu130", "13.0")
    version.write_text("__version__ = '3.0.0+cpu'\ncuda: Optional[str] = None\n")
    assert build.Torch.at(tmp_path) == build.Torch(tmp_path, "3.0.0+cpu", None)
    assert build.Torch.at(HERE).version == torch.__version__


def test_one_library_serves_many_versions(nvcc):
    nvcc("13.0")
    versions = (("2.11.0", "13.0"), ("2.15.0", "13.2"), ("2.12.0", "12.9"), ("2.13.0", None))
    old, new, other, without = (some_torch(*version) for version in versions)
    assert build.to_build(old) == build.to_build(new) != build.to_build(other) == build.to_build(without)
    assert "does not fit" in build.why_no_cuda(other)
    nvcc(None)
    assert build.to_build(old) == build.to_build(without)
    assert build.why_no_cuda(old) == "no nvcc (set CUDA_HOME)"


def test_a_library_for_gpus_is_found_where_none_can_be_compiled(nvcc, tmp_path, monkeypatch):
    nvcc("13.0")
    gpu, cpu = some_torch("2.11.0", "13.0"), some_torch("2.11.0", None)
    (tmp_path / build.to_build(cpu)).touch()
    assert build.find(gpu, [tmp_path]) is None  # the better one is worth a compilation
    assert build.find(gpu, [tmp_path], compiles=False) == build.find(cpu, [tmp_path]) is not None
    nvcc(None)
    assert not build.has_gpu_part(build.find(gpu, [tmp_path]))
    nvcc("13.0")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / build.to_build(gpu)).touch()
    nvcc(None)
    assert build.has_gpu_part(build.find(gpu, [tmp_path, tmp_path / "elsewhere"]))
    assert build.find(cpu, [tmp_path / "elsewhere", tmp_path]) == tmp_path / build.library_name("cpu")
    assert build.has_gpu_part(build.find(cpu, [tmp_path / "elsewhere"]))  # it serves a PyTorch without CUDA, too
    monkeypatch.setattr(build, "EMULATE", True)
    assert build.find(gpu, [tmp_path]) is None


@pytest.mark.full
def test_the_library_for_gpus(tmp_path, monkeypatch):
    """Compiled and linked by the nvcc of this machine for every target; the same file serves a PyTorch without CUDA."""
    said = build.nvcc() and subprocess.run([build.nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    if not said:
        pytest.skip("no nvcc")
    release = re.search(r"release ([\d.]+)", said)[1]
    quick = ("-Ofc", "max") if int(release.partition(".")[0]) >= 13 else ("-O0",)  # in half the time
    monkeypatch.setattr(build, "NVCC_FLAGS", (*(flag for flag in build.NVCC_FLAGS if flag != "-O3"), *quick))
    monkeypatch.setattr(build, "CXX_FLAGS", (*build.CXX_FLAGS, "-O0"))
    torch_ = some_torch(torch.__version__, release)
    library = tmp_path / build.to_build(torch_)
    assert build.has_gpu_part(library)
    build.compile_library(torch_, library)
    command = [sys.executable, "-c", LOADED, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=6000, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "good\n"


def test_sources_and_processor_are_part_of_the_name(monkeypatch, tmp_path):
    before = build.library_name("cpu")
    (tmp_path / "math.h").write_text("// other mathematics")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    other = build.library_name("cpu")
    monkeypatch.setattr(build, "cpu_flags", lambda: ("-mother",))
    assert len({before, other, build.library_name("cpu")}) == 3


def test_what_gpus_get_unasked():
    assert native.path("cuda").name == "closed"
    assert "ops.path=fused" in native.path("cuda").reason
    assert native.path("cuda", "reference").name == "reference"


def test_many_processes_compile_once(compiler, tmp_path):
    command = [sys.executable, "-c", ONCE, str(tmp_path), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    libraries = {process.communicate(timeout=600)[0] for process in running}
    assert compiler() == len(list(build.SOURCES.glob("*.cpp"))) + 1
    assert len(libraries) == 1
    assert Path(libraries.pop().strip()).exists()
    assert not list((tmp_path / "cache").glob("build-*"))


def test_a_failure_is_remembered_for_the_others(compiler, tmp_path):
    (tmp_path / "broken").touch()
    torch_ = build.Torch(tmp_path, "2.11.0", None)
    for _ in range(2):
        with pytest.raises(build.CannotBuild, match=r"slow-c.* failed: error: this one is broken"):
            build.build_once(torch_, tmp_path / "cache")
    assert compiler() == len(list(build.SOURCES.glob("*.cpp")))
    assert not list((tmp_path / "cache").glob("*.so"))


@pytest.mark.full
@pytest.mark.parametrize(("mode", "said"), [
    ("auto", "reference (slow-c++ failed: error: this one is broken)"),
    ("never", "reference (not built, and STYLEGAN_DIST_BUILD=never)"),
    ("require", "error: STYLEGAN_DIST_BUILD=require, but there are no native operators: slow-c++ failed"),
    ("perhaps", "error: STYLEGAN_DIST_BUILD=perhaps: use auto, require or never"),
])
def test_modes(mode, said, compiler, tmp_path, monkeypatch):
    (tmp_path / "broken").touch()
    monkeypatch.setenv("STYLEGAN_DIST_BUILD", mode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-c", PATH], capture_output=True, text=True, timeout=6000, check=True)
    assert done.stdout.startswith(said)
