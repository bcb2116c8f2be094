"""Reads the tensors of a TorchScript archive without running anything that is in it.

`torch.jit.load` compiles the code of the archive and may run its `__setstate__`, and `torch.load(weights_only=True)` refuses
such files. The archive is a zip file: `data.pkl` describes a tree of modules, and `data/0`, `data/1`, ... are the bytes of
storages. Here the tree is unpickled with a table of allowed names. All of them stand for functions and classes of this
file, which only make containers and views of the bytes. Everything else is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

_DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
           "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
           "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}
_DEEPEST = 64  # modules within modules


class _Module:
    """Stands for an object of any class of the archive: its attributes, and nothing else."""

    attributes: dict[str, Any]

    def __init__(self) -> None:
        self.attributes = {}

    def __new__(cls, *_: object) -> _Module:
        module = super().__new__(cls)
        module.attributes = {}
        return module

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.attributes = {str(name): value for name, value in state.items()}


def _list(values: Any = ()) -> list:
    return list(values)


def _dict(*_: object) -> dict:
    return {}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    """A view of a storage, a tensor of one dimension. PyTorch checks that it does not reach beyond."""
    if not isinstance(storage, Tensor):
        raise ValueError("a tensor without a storage")
    return torch.as_strided(storage, [int(n) for n in size], [int(n) for n in stride], int(offset))


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        allowed = {("torch._utils", "_rebuild_tensor_v2"): _tensor, ("collections", "OrderedDict"): _dict,
                   ("torch.jit._pickle", "build_intlist"): _list, ("torch.jit._pickle", "build_tensorlist"): _list,
                   ("torch.jit._pickle", "build_doublelist"): _list, ("torch.jit._pickle", "build_boollist"): _list}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no network needs")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("it refers to something else than tensors")
        if key not in self._storages:
            member = self._archive.getinfo(f"{self._root}data/{key}")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"the tensor {key} has another size than it should")
            content = bytearray(self._archive.read(member))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def read_archive(file: BinaryIO) -> dict[str, Tensor]:
    """The tensors of an archive by their names, as `state_dict()` of the module would name them.

    Raises:
        ValueError: it is no such archive, or is damaged, or holds what a network does not need.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("data.pkl")]
            root = min(roots, key=len, default="")
            top = _Unpickler(archive, root).load()
    except Exception as error:  # pickle and zipfile raise errors of many kinds on damaged files
        raise ValueError(f"it cannot be read as a TorchScript archive ({type(error).__name__}: {error})") from None
    if not isinstance(top, _Module):
        raise ValueError("the TorchScript archive holds no module")
    return dict(_tensors(top, "", _DEEPEST))


def _tensors(module: _Module, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if not depth:
        raise ValueError("the TorchScript archive has modules within modules without end")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", depth - 1)
