"""Files of tensors: byte for byte those of safetensors, with the right SHA-256."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from stylegan_dist.ranks import Sharded
from stylegan_dist.training import tensor_file
from stylegan_dist.training.saved import DTYPES
from stylegan_dist.training.tensor_file import Cancelled, TensorFile


def filled(content: dict, **options) -> TensorFile:
    file = TensorFile(content, **options)
    for name, value in content.items():
        file[name] = value
    return file


def everything() -> dict[str, torch.Tensor]:
    content = {"channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last), "view": torch.arange(10.0)[::2]}
    for number, dtype in enumerate(DTYPES.values()):
        content |= {f"{name}{number}": (torch.rand(3, 5) * 3).to(dtype) for name in ("z", "a.b", 'q"\\ü')}
        content |= {f"scalar{number}": torch.tensor(1).to(dtype), f"empty{number}": torch.empty(0, 4, dtype=dtype)}
    return content


@pytest.mark.parametrize("content", [{}, {"w": torch.ones(3)}, everything()])
def test_the_bytes_are_those_of_safetensors(content, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "PIECE", 7)
    measure = filled(content).write(tmp_path / "ours")
    save_file({name: value.contiguous() for name, value in content.items()}, tmp_path / "theirs")
    written = (tmp_path / "ours").read_bytes()
    assert written == (tmp_path / "theirs").read_bytes()
    assert measure == {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}


def test_memory_is_used_again(tmp_path):
    one, other = ({"w": torch.full((5,), value), "n": torch.tensor(int(value))} for value in (1.0, 2.0))
    first = filled(one)
    second = filled(other, buffer=first.buffer)
    assert second.buffer is first.buffer
    assert filled({"w": torch.ones(6)}, buffer=first.buffer).buffer is not first.buffer
    second.write(tmp_path / "file")
    assert {name: value.tolist() for name, value in load_file(tmp_path / "file").items()} == {"w": 5 * [2.0], "n": 2}


def test_a_distributed_tensor_has_its_place_before_it_is_read(tmp_path):
    file = TensorFile({"w": Sharded(torch.Size([2, 2]), torch.float32, lambda: torch.ones(2, 2))})
    file["w"] = torch.eye(2)
    file.write(tmp_path / "file")
    assert torch.equal(load_file(tmp_path / "file")["w"], torch.eye(2))


def test_a_file_that_nobody_wants_any_more(tmp_path):
    with pytest.raises(Cancelled):
        filled({"w": torch.ones(3)}).write(tmp_path / "file", lambda: True)
    assert not (tmp_path / "file").exists()  # nor is a newer one of that name emptied
