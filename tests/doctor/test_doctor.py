"""The verb `doctor` as it is used, on this machine, and with things that are really broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from launching import finished
from wandb_server import KEY

from stylegan_dist.doctor import all_reduce, gpus, places, services, software, trial
from stylegan_dist.doctor.asking import LIMIT, examine
from stylegan_dist.doctor.record import Options
from stylegan_dist.machine import LIBRARIES
from stylegan_dist.ops import native

DOCTOR = [sys.executable, "-m", "stylegan_dist.cli", "doctor"]
HOST = "wandb.example:8080"


@pytest.fixture
def home(tmp_path):
    """The environment of a user with a home and a temporary folder of their own, and the usual cache."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "XDG_CACHE_HOME": cache}


def doctor(*words, path=(), limits="", **environment):
    """The object of `doctor --json`, and the exit code.

    Args:
        path: folders of modules that go before others.
        limits: what a shell does before it becomes the command.
    """
    command = ["bash", "-c", f'{limits}\nexec "$@"', "bash", *DOCTOR, "--json", *map(str, words)]
    pythonpath = os.pathsep.join(filter(None, (*map(str, path), os.environ.get("PYTHONPATH"))))
    done = finished(command, timeout=10 * LIMIT, PYTHONPATH=pythonpath, **environment)
    assert done.stderr == ""
    return json.loads(done.stdout), done.returncode


def by_name(said):
    return {one["name"]: one for one in said["checks"]}


def found(checks, **options):
    """Findings by name of some checks, in a process of their own."""
    return {one.name: one for one in examine([checks], Options(**options), lambda name: None, lambda one: None)}


def fake_module(folder: Path, name: str, code: str) -> Path:
    """A library as pip installs it."""
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (folder / f"{name}.py").write_text(code)
    return folder


def test_training_would_start_here_in_spite_of_warnings(home, tmp_path):
    has_operators = bool(native.native().devices)
    misfit = fake_module(tmp_path / "site", "torchvision",
                         "raise RuntimeError('operator torchvision::nms does not exist')")
    said, code = doctor("--run", tmp_path / "runs" / "new", path=[misfit], limits="ulimit -n 256", WANDB_API_KEY=KEY,
                        RANK="1", WORLD_SIZE="4", ACCELERATE_USE_FSDP="true", **home)
    facts = by_name(said)
    assert code == 0, said
    assert said["overall"] == "warning"
    assert not [one for one in said["checks"] if one["status"] == "error"]
    assert all(one["remedy"] for one in said["checks"] if one["status"] == "warning")
    assert {"Python", "stylegan_dist", "PyTorch", *LIBRARIES} <= {*said["versions"], "deepspeed"}
    assert facts["training step"]["status"] == "ok"
    assert facts["all-reduce"]["text"].startswith("two processes, ")
    assert facts["torchvision"]["status"] == facts["file handles"]["status"] == "warning"
    assert "operator torchvision::nms does not exist" in facts["torchvision"]["text"]
    assert "torchvision==0." in facts["torchvision"]["remedy"]
    assert facts["file handles"]["text"].startswith("256")
    assert "ulimit -n 1024" in facts["file handles"]["remedy"]
    assert facts["W&B"]["text"].startswith("online (https://")
    assert KEY not in json.dumps(said)
    assert facts["run folder"]["text"].startswith(f"{tmp_path}/runs/new, to be made in {tmp_path}: ")
    assert "efficientnet-lite0" in " ".join(facts)
    if has_operators:
        assert facts["operators, cpu"]["text"].startswith("fused (")
        assert facts["gradients, cpu"]["status"] == "ok"
    assert not [path for path in (tmp_path / "tmp").iterdir() if not path.name.startswith("torchinductor")]
    assert not (tmp_path / "runs").exists()


def test_a_pytorch_that_does_not_load_is_one_line(home, tmp_path):
    """As where a library of CUDA is missing. Nothing else tells the same again."""
    broken = fake_module(tmp_path / "site", "torch", "raise OSError('libcudart.so.12: cannot open shared object file')")
    done = finished(DOCTOR, PYTHONPATH=os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")]), **home)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("PyTorch"))
    assert lines[place].split()[1] == "error"
    assert lines[place].endswith("does not load (OSError: libcudart.so.12: cannot open shared object file)")
    assert lines[place + 1].strip() == "-> install it again: pip install --force-reinstall torch"
    assert done.stdout.count("libcudart") <= 2  # accelerate imports it, too
    for name in ("GPU", "feature networks", "all-reduce", "training step", "operators"):
        line = next(line for line in lines if line.startswith(name))
        assert "warning" in line
        assert "not tried, because of: " in line
        assert "PyTorch" in line
    assert lines[-1].startswith("training would not start here: ")
    assert "Traceback" not in done.stdout + done.stderr


def in_small_disk(folder: Path) -> list[str]:
    """The beginning of a command that runs where a folder is a disk of 64 kB."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c",
               f'mount -t tmpfs -o size=64k tmpfs "{folder}" && exec "$@"', "bash"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no name spaces for users here")
    return command


@pytest.mark.full
def test_full_disks(home, tmp_path):
    done = finished([*in_small_disk(tmp_path / "tmp"), *DOCTOR, "--json", "--run", str(tmp_path / "tmp")], **home)
    said = json.loads(done.stdout)
    facts = by_name(said)
    assert done.returncode == 1
    assert said["overall"] == "error"
    for name in ("run folder", "temporary folder"):
        assert facts[name]["status"] == "error"
        assert "No space left on device" in facts[name]["text"]
    assert "TMPDIR" in facts["temporary folder"]["remedy"]
    assert facts["training step"]["text"] == "not tried, because of: temporary folder"


@pytest.mark.parametrize("folder", ["/proc/self", "missing"])
def test_a_temporary_folder_that_is_of_no_use(folder, monkeypatch):
    monkeypatch.setenv("TMPDIR", folder)
    temporary = found(places.CHECKS)["temporary folder"]
    assert temporary.status == "warning"
    assert temporary.text.startswith(f"TMPDIR={folder} cannot be written")
    assert "TMPDIR" in temporary.remedy


def test_no_folder_for_caches(monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME", "TMPDIR"):
        monkeypatch.setenv(name, "/proc/self")
    cache = found(places.CHECKS)["cache folder"]
    assert cache.status == "ok"  # in the temporary folder of the system
    assert "/stylegan-dist-" in cache.text


@pytest.mark.parametrize(("variables", "netrc", "status", "said"), [
    ({}, "", "warning", "offline (no API key for https://"),
    ({"WANDB_API_KEY": KEY}, "", "ok", "online (https://"),
    ({"WANDB_BASE_URL": f"https://{HOST}"}, HOST, "ok", f"online (https://{HOST}, login from the netrc file)"),
    ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "ok", "offline (WANDB_MODE=offline)"),
    ({"WANDB_MODE": "disabled"}, "", "ok", "disabled (WANDB_MODE=disabled)"),
    ({"WANDB_BASE_URL": "nonsense"}, "", "warning", "cannot be used ("),
])
def test_login_of_wandb(variables, netrc, status, said, home, monkeypatch):
    for name, value in (home | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home["HOME"])
    if netrc:
        Path(home["HOME"], ".netrc").write_text(f"machine {netrc}\n  login user\n  password {KEY}\n")
    finding = found(services.CHECKS[:1])["W&B"]
    assert (finding.status, finding.text[:len(said)]) == (status, said)
    assert KEY not in finding.text + finding.remedy
    assert bool(finding.remedy) is (status != "ok")


def test_weights_of_feature_networks(home, tmp_path, monkeypatch):
    from stylegan_dist.features.registry import NETWORKS

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "stylegan-dist" / "features"
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    (folder / NETWORKS["dinov2-s"].weights.file).write_text("half a download")
    (folder / NETWORKS["clip"].weights.file).write_text("of unknown size")
    facts = found(services.CHECKS[1:])
    assert set(facts) == {f"weights {name}" for name in NETWORKS}
    assert facts["weights inception"].text.endswith(f"put it at {folder / NETWORKS['inception'].weights.file}")
    assert facts["weights dinov2-s"].status == "warning"
    assert "is damaged: 15 bytes instead of 88283115" in facts["weights dinov2-s"].text
    assert facts["weights clip"].text == str(folder / NETWORKS["clip"].weights.file)


def test_libraries_that_are_broken(tmp_path, monkeypatch):
    for name, code in (("safetensors", "raise ImportError('wrong ELF class')"), ("wandb", "raise RuntimeError('odd')")):
        fake_module(tmp_path, name, code)
    monkeypatch.syspath_prepend(str(tmp_path))
    facts = found(software.LIBRARY_CHECKS[:1])
    assert facts["safetensors"].status == "error"
    assert facts["safetensors"].text == "0.1.0 does not load (ImportError: wrong ELF class)"
    assert "pip install" in facts["safetensors"].remedy
    assert facts["wandb"].status == "warning"
    assert "training goes on without it" in facts["wandb"].text
    assert facts["numpy"].status == "ok"


@pytest.mark.full
def test_a_driver_that_never_answers(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import time, torch\ntorch.cuda.is_available = lambda: time.sleep(1000)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    asked = [check if check.name != "GPU" else replace(check, seconds=3) for check in (*software.CHECKS, *gpus.CHECKS)]
    facts = found([*asked, *trial.CHECKS])
    assert facts["GPU"].status == "error"
    assert facts["GPU"].text.startswith("no answer within ")
    assert "nvidia-smi" in facts["GPU"].remedy
    assert facts["training step"].text == "not tried, because of: GPU"


@pytest.mark.full
def test_processes_that_do_not_reach_each_other(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nonexistent0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = found(all_reduce.CHECKS)["all-reduce"]
    assert finding.status == "warning"  # one process trains
    assert "nonexistent0" in finding.text
    assert "GLOO_SOCKET_IFNAME" in finding.remedy
    with pytest.raises(RuntimeError, match=r"nothing within 0.1 s \("):
        all_reduce.run_ranks("cpu", seconds=0.1)


@pytest.mark.full
def test_a_training_that_does_not_start(tmp_path, monkeypatch):
    assert found(trial.CHECKS)["training step"].text == "there is no folder to write a small data set to"
    monkeypatch.setenv("STYLEGAN_DIST_BUILD", "perhaps")
    finding = found(trial.CHECKS, scratch=str(tmp_path))["training step"]
    assert finding.status == "error"
    assert finding.text == "training ends with exit code 2: STYLEGAN_DIST_BUILD=perhaps: use auto, require or never"


def test_too_few_handles_even_for_the_doctor():
    said, code = doctor(limits="ulimit -n 8")
    assert code == 1
    assert by_name(said)["processes"]["status"] == "error"


def test_help_teaches():
    said = finished([*DOCTOR, "--help"]).stdout
    for word in ("exit codes: 0", "--run", "--json", "examples:"):
        assert word in said
