"""launch/setup.sh: what it says where it cannot install, and what it does when run again. Nothing is installed here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, TIMEOUT, alive, wait_until

STATE = str(ROOT / "launch/venv_state.py")


def setup(venv: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", ROOT / "launch/setup.sh", "demo"], env=os.environ | {"VENV": str(venv)} | environment,
                          capture_output=True, text=True, timeout=TIMEOUT, check=False)


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def refused(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize(("python", "words"), [
    ("exit 127", ["cannot be run", "PYTHON="]),
    ('case "$*" in *exit*) exit 1;; *) echo 3.9;; esac', ["3.9", "3.10", "PYTHON="]),
    ('case "$*" in *ensurepip*) exit 1;; *exit*) ;; *) echo 3.12;; esac', ["apt install python3.12-venv"]),
])
def test_a_python_that_will_not_do(python: str, words: list[str], tmp_path: Path):
    refused(setup(tmp_path / "venv", PYTHON=str(program(tmp_path / "python", python))), *words)
    assert not (tmp_path / "venv").exists()


def test_a_folder_that_is_something_else(tmp_path: Path):
    """It would be emptied."""
    (tmp_path / "precious").touch()
    refused(setup(tmp_path, PYTHON=sys.executable), str(tmp_path), "VENV")
    assert (tmp_path / "precious").exists()


def test_a_clone_that_cannot_be_written(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    shutil.copytree(ROOT / "launch", tmp_path / "clone/launch")
    (tmp_path / "clone").chmod(0o555)
    done = subprocess.run(["bash", tmp_path / "clone/launch/setup.sh", "demo"], capture_output=True, text=True, check=False)
    refused(done, str(tmp_path / "clone"), "written")


def stub(venv: Path, install: str) -> Path:
    """An environment whose Python can do all but install."""
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    program(venv / "bin/python", f'case "$*" in *"state.py ready"*) exit 1;; *state.py*) ;; *"pip install"*) {install};; '
                                 f'*"pip --version"*) ;; *) exec {sys.executable} "$@";; esac')
    return venv


@pytest.mark.parametrize(("pip", "words"), [
    ("ERROR: No matching distribution found for torch", ["PIP_INDEX_URL", "PIP_NO_INDEX"]),
    ("OSError: [Errno 28] No space left on device", ["room"]),
    ("ERROR: Failed building wheel for x", ["mend what it says"]),
])
def test_pip_fails(pip: str, words: list[str], tmp_path: Path):
    result = setup(stub(tmp_path / "venv", f'echo "{pip}"; exit 1'))
    log = tmp_path / "venv/install.log"
    assert result.returncode == 2
    assert pip in log.read_text()
    assert all(word in result.stderr for word in (*words, str(log), pip))


def test_a_stop_ends_pip(tmp_path: Path):
    pid = tmp_path / "pid"
    venv = stub(tmp_path / "venv", f"echo $$ > {pid}.part; mv {pid}.part {pid}; sleep 10000")
    process = subprocess.Popen(["bash", ROOT / "launch/setup.sh", "demo"], env=os.environ | {"VENV": str(venv)},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # ignored below `command &`
    wait_until(pid.exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "goes on" in err
    wait_until(lambda: not alive(int(pid.read_text())))


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment without pip, as venv makes them, into which files have been put as pip would have put them."""
    site = tmp_path / f"venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    site.mkdir(parents=True)
    (tmp_path / "venv/bin").mkdir()
    base = Path(sys._base_executable)  # type: ignore[attr-defined]
    (tmp_path / "venv/bin/python").symlink_to(base)
    (tmp_path / "venv/pyvenv.cfg").write_text(f"home = {base.parent}\n")
    install(site, "stylegan-dist")
    install(site, "torch")
    return tmp_path / "venv"


def install(site: Path, name: str) -> None:
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    (site / name).mkdir()
    info.mkdir()
    (site / name / "__init__.py").write_text("x = 1\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(f'{{"dir_info": {{"editable": true}}, "url": "{ROOT.as_uri()}"}}')
    (info / "RECORD").write_text(f"{name}/__init__.py,sha256=0,6\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


def state(venv: Path, *arguments: str) -> int:
    return subprocess.run([venv / "bin/python", "-I", STATE, *arguments], check=False, timeout=TIMEOUT).returncode


def test_nothing_is_done_twice(venv: Path):
    assert state(venv, "ready", "demo") != 0
    assert state(venv, "done", "demo") == 0
    result = setup(venv)
    assert (result.returncode, result.stderr) == (0, "")
    assert "nothing to install" in result.stdout
    assert state(venv, "ready", "test") != 0
    state(venv, "done", "test")
    assert state(venv, "ready", "demo") == state(venv, "ready", "test") == 0


@pytest.mark.parametrize("damage", [
    lambda site: (site / "torch/__init__.py").unlink(),
    lambda site: (site / "torch/__init__.py").write_text(""),
    lambda site: (site / "torch-1.0.dist-info/RECORD").unlink(),
    lambda site: (site / "torch-1.0.dist-info/METADATA").write_text("Name: torch\nVersion: 0.9\n"),
    lambda site: shutil.rmtree(site / "torch-1.0.dist-info"),
    lambda site: (site / "stylegan_dist-1.0.dist-info/direct_url.json").write_text('{"url": "file:///another/clone"}'),
    lambda site: next(site.parents[2].glob("*.json")).write_text("[1, 2"),
], ids=["file gone", "file cut", "list gone", "other version", "package gone", "other clone", "note damaged"])
def test_what_is_broken_is_noticed(damage, venv: Path):
    state(venv, "done", "demo")
    assert state(venv, "ready", "demo") == 0
    damage(next(venv.glob("lib/python*/site-packages")))
    assert state(venv, "ready", "demo") != 0


def test_pip_will_install_again_what_is_broken(venv: Path):
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "torch/__init__.py").write_text("")
    (site / "~umpy").mkdir()
    assert state(venv, "mend") == 0
    assert sorted(path.name for path in site.glob("*-info")) == ["stylegan_dist-1.0.dist-info"]
    assert not (site / "~umpy").exists()


@pytest.mark.parametrize(("overrides", "run_dir"), [
    ([], "runs/demo"),
    (["run.dir=a", "run.kimg=1", "run.dir=b c"], "b c"),
    (["--dry-run", "run.dir =c"], "c"),
])
def test_where_the_demo_finds_its_run(overrides: list[str], run_dir: str):
    done = subprocess.run([sys.executable, ROOT / "launch/settings.py", ROOT / "launch/presets/demo.yaml", *overrides],
                          capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert done.stdout.splitlines() == [run_dir, "data/digits", "auto"]


def test_settings_without_a_preset():
    done = subprocess.run([sys.executable, ROOT / "launch/settings.py", "run.dir=some/where", "data.shards=here"],
                          capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert done.stdout.splitlines() == ["some/where", "here", "auto"]


def test_the_demo_refuses_a_wrong_key():
    done = subprocess.run([sys.executable, ROOT / "launch/settings.py", ROOT / "launch/presets/demo.yaml", "run.kimgs=1"],
                          capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "run.kimg" in done.stderr
