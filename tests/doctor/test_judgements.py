"""What is made of facts that this machine does not have: GPUs, drivers, versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from stylegan_dist.doctor.gpus import driver_release, judge_code, judge_driver, judge_no_gpu
from stylegan_dist.doctor.places import judge_folder
from stylegan_dist.doctor.software import fitting_torchvision

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(("capability", "architectures", "runs"), [
    ((9, 0), CUDA_13, True),
    ((8, 9), CUDA_13, True),                      # code for 8.6
    ((7, 0), CUDA_13, False),                     # V100 and a PyTorch for CUDA 13
    ((12, 1), CUDA_13, True),
    ((13, 0), CUDA_13, True),                     # PTX
    ((12, 0), ["sm_80", "sm_90"], False),         # a new GPU and an old PyTorch
    ((12, 0), ["sm_80", "compute_90"], True),
    ((8, 0), ["sm_86"], False),
    ((9, 0), ["sm_90a"], True),
    ((10, 0), ["sm_90a", "compute_90a"], False),
    ((10, 3), ["sm_100f"], True),
    ((12, 0), ["compute_100f"], False),
    ((9, 0), [], False),
])
def test_code_for_a_gpu(capability, architectures, runs):
    found = judge_code("GPU 0", "Some GPU", capability, architectures)
    assert (found is None) is runs
    if found:
        assert found.status == "error"
        assert f"compute capability {capability[0]}.{capability[1]}" in found.text
        assert "pytorch.org" in found.remedy


@pytest.mark.parametrize(("driver", "built_with", "status"), [
    ((13, 0), "13.0", "ok"),
    ((12, 2), "12.8", "ok"),        # minor version compatibility
    ((13, 1), "12.6", "ok"),
    ((12, 4), "13.0", "error"),
    ((12, 4), None, "ok"),
    (None, "13.0", "warning"),
])
def test_driver(driver, built_with, status):
    found = judge_driver("550.54.15", driver, built_with)
    assert found.status == status
    assert "550.54.15" in found.text
    assert bool(found.remedy) is (status != "ok")


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="for machines without a driver")
@pytest.mark.parametrize(("script", "release"), [("echo 550.54.15; echo 550.54.15", "550.54.15"), ("exit 9", ""), ("", "")])
def test_release_of_a_driver_that_only_its_program_knows(script, release, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_release() == release


@pytest.mark.parametrize(("there", "built_with", "visible", "status", "said"), [
    (0, None, None, "warning", "none"),
    (0, "13.0", None, "warning", "none"),
    (2, None, None, "error", "2 GPUs of this machine: it is a build without CUDA"),
    (1, "13.0", None, "error", "1 GPU of this machine: the driver is too old"),
    (1, "13.0", "", "warning", "hidden by CUDA_VISIBLE_DEVICES="),
    (1, "13.0", "7", "error", "does not see"),
])
def test_no_gpu(there, built_with, visible, status, said):
    found = judge_no_gpu(there, built_with, "the driver is too old", visible)
    assert found.status == status
    assert said in found.text


@pytest.mark.parametrize(("torch", "said"), [
    ("2.13.0+cpu", "'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu, or"),
    ("2.11.0+cu130", "'torchvision==0.26.*' --index-url https://download.pytorch.org/whl/cu130, or"),
    ("2.12.1", "'torchvision==0.27.*', or"),
    ("2.14.0a0+gitabc", "'torchvision==0.29.*', or"),
    ("of unknown version", "pip uninstall torchvision"),
])
def test_torchvision_that_fits(torch, said):
    assert said in fitting_torchvision(torch)


def test_folder(tmp_path):
    def judge(folder, little=0, least=0):
        return judge_folder("run folder", folder, "choose another", little, least)

    assert judge(tmp_path).status == "ok"
    new = judge(tmp_path / "a" / "b")
    assert new.status == "ok"
    assert f"to be made in {tmp_path}" in new.text
    assert not (tmp_path / "a").exists()
    assert judge(tmp_path, little=10**18).status == "warning"
    assert judge(tmp_path, least=10**18).status == "error"
    for folder in (Path("/proc/self"), tmp_path / "file" / "b"):  # where not even root can write
        (tmp_path / "file").touch()
        found = judge(folder)
        assert found.status == "error"
        assert "cannot be written" in found.text
        assert found.remedy == "choose another"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
