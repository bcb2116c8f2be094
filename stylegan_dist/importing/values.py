"""The inert values of a pickle: what the names in it stand for.

`VOCABULARY` is the whole list. An object of another project becomes a `Record`: the name of its class and its attributes.
A tensor becomes a `Stored`: where its numbers lie. Nothing here looks up a name anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_dist.importing.machine import MOST_NAME, Blob, LongText, Machine, Refused

MOST_DIMENSIONS = 8
_STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
             "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
             "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}
_DTYPES = ("float32", "float16", "float64", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_NUMPY = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
TENSORFLOW_NETWORK = "dnnlib.tflib.network.Network"
# Classes whose objects become records: those of R3GAN's networks, of PyTorch's layers, of TensorFlow files.
_RECORDS = ("training.networks.", "R3GAN.Networks.", "R3GAN.FusedOperators.", "R3GAN.Resamplers.", "torch.nn.modules.",
            TENSORFLOW_NETWORK, "argparse.Namespace")


@dataclass(eq=False)
class Record:
    """An object of any class.

    Attributes:
        name: of the class.
        attributes: the object's.
    """

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Name:
    """A name of the vocabulary. `make` makes the value that a call of it stands for; None: it is not called."""

    text: str
    make: Callable[[Machine, tuple], Any] | None = None
    value: Any = None  # what the name itself stands for, such as a dtype


@dataclass(eq=False)
class Storage:
    """Numbers in the file, one after the other.

    Attributes:
        read: gives their bytes.
    """

    dtype: torch.dtype
    count: int
    read: Callable[[], memoryview | bytes]


@dataclass(eq=False)
class Stored:
    """A tensor, as a part of a storage. Nothing is read before `tensor`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def tensor(self) -> Tensor:
        """A copy, contiguous, float32 where the numbers have another precision.

        Raises:
            Refused: the file is damaged there.
        """
        count, size = math.prod(self.shape), self.storage.dtype.itemsize
        if count == 0 or sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True)) >= count:
            raise Refused(f"refused: a tensor {list(self.shape)} with strides {list(self.stride)}, which has gaps")
        numbers = self.storage.read()[self.offset * size:(self.offset + count) * size]
        if len(numbers) != count * size:
            raise Refused(f"refused: a tensor of {len(numbers)} bytes instead of {count * size}")
        value = torch.frombuffer(bytearray(numbers), dtype=self.storage.dtype).as_strided(self.shape, self.stride).contiguous()
        return value.float() if value.is_floating_point() else value


@dataclass(eq=False)
class Dtype:
    """numpy.dtype of plain numbers, little-endian."""

    code: str


@dataclass(eq=False)
class Array:
    """numpy.ndarray; `value` once its content is known."""

    value: np.ndarray | None = None


def content(machine: Machine, value: Any) -> memoryview | bytes:
    """The bytes of a value."""
    if isinstance(value, Blob):
        return machine.data[value.start:value.end]
    if isinstance(value, bytes):
        return value
    raise machine.refused(f"a {type(value).__name__} in place of bytes")


class Vocabulary:
    """What names stand for.

    Args:
        load_bytes: makes the storage of what `torch.save` wrote into the bytes of a pickle; None: there is none inside.
    """

    def __init__(self, load_bytes: Callable[[Machine, Blob], Storage] | None = None):
        self._load_bytes = load_bytes

    def named(self, module: str, name: str) -> Name | None:
        """What a name stands for; None: nothing."""
        text = f"{module}.{name}"
        if module == "torch" and name in _STORAGES:
            return Name(text, value=_STORAGES[name])
        if module == "torch" and name in _DTYPES:
            return Name(text, value=getattr(torch, name))
        if text == "torch.storage._load_from_bytes" and self._load_bytes is not None:
            return Name(text, self._storage)
        if text in VOCABULARY:
            return Name(text, VOCABULARY[text])
        if any(text.startswith(one) if one.endswith(".") else text == one for one in _RECORDS):
            return Name(text, lambda machine, arguments: _record(machine, text, arguments))
        return None

    def made(self, machine: Machine, what: Any, arguments: Any) -> Any:
        """What a call of `what` stands for.

        Raises:
            Refused: it stands for nothing.
        """
        if not isinstance(what, Name) or what.make is None:
            raise machine.refused(f"a call of {what.text if isinstance(what, Name) else f'a {type(what).__name__}'}")
        if not isinstance(arguments, tuple):
            raise machine.refused(f"a call of {what.text} with a {type(arguments).__name__} of arguments")
        machine.budget.spend(len(arguments))
        return what.make(machine, arguments)

    def build(self, machine: Machine, target: Any, state: Any) -> None:
        """Give an object its state.

        Raises:
            Refused: it can have none, or not this one.
        """
        if isinstance(target, Record) and _is_attributes(state) and not target.attributes:
            machine.budget.spend(len(state))
            target.attributes.update(state)
        elif isinstance(target, dict) and _is_attributes(state):  # attributes of an OrderedDict, such as _metadata
            pass
        elif isinstance(target, Dtype) and isinstance(state, tuple) and len(state) in (8, 9):
            if state[1] not in ("<", "|") or any(part is not None for part in state[2:5]):
                raise machine.refused("a numpy.dtype that is big-endian or of several fields")
        elif isinstance(target, Array) and isinstance(state, tuple) and len(state) == 5:
            target.value = _array(machine, *state[1:])
        else:
            raise machine.refused(f"a state for a {type(target).__name__}")

    def _storage(self, machine: Machine, arguments: tuple) -> Storage:
        assert self._load_bytes is not None
        if len(arguments) != 1 or not isinstance(arguments[0], Blob):
            raise machine.refused("a storage that is no bytes")
        return self._load_bytes(machine, arguments[0])


def _is_attributes(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(key, str) for key in state)


def _record(machine: Machine, name: str, arguments: tuple) -> Record:
    if arguments:
        raise machine.refused(f"an object of {name} with arguments")
    return Record(name)


def _persistent(machine: Machine, arguments: tuple) -> Record:
    """NVIDIA's objects carry the source of their classes, which is ignored."""
    meta = arguments[0] if len(arguments) == 1 else None
    name, state = (meta.get("class_name"), meta.get("state")) if isinstance(meta, dict) else (None, None)
    if not isinstance(name, str) or not name.isidentifier() or not isinstance(state, dict) or not _is_attributes(state):
        raise machine.refused("a persistent object without class and state")
    return Record(name[:MOST_NAME], state)


def _dict(machine: Machine, arguments: tuple) -> dict:
    if not arguments:
        return {}
    pairs = arguments[0]
    if len(arguments) > 1 or not isinstance(pairs, (list, dict)):
        raise machine.refused("a dictionary from something else than its items")
    machine.budget.spend(len(pairs))
    result: dict[Any, Any] = {}
    for pair in pairs.items() if isinstance(pairs, dict) else pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise machine.refused("a dictionary from something else than its items")
        result[machine.key(pair[0])] = pair[1]
    return result


def _set(machine: Machine, arguments: tuple) -> set:
    if len(arguments) > 1 or not all(isinstance(one, (list, tuple)) for one in arguments):
        raise machine.refused("a set from something else than its items")
    items = [item for one in arguments for item in one]
    machine.budget.spend(len(items))
    return set(map(machine.key, items))


def _tensor(machine: Machine, arguments: tuple) -> Stored:
    """(storage, offset, shape, strides, requires_grad, hooks, and perhaps metadata)."""
    if not 4 <= len(arguments) <= 7 or not isinstance(arguments[0], Storage):
        raise machine.refused("a tensor without a storage")
    storage, offset, shape, stride = arguments[:4]
    sizes = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
    if any(type(number) is not int or not 0 <= number < 1 << 48 for number in sizes) \
            or len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
        raise machine.refused("a tensor with an odd shape")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if count and (last >= storage.count or count > storage.count):  # numbers that are shared could be more than the file has
        raise machine.refused(f"a tensor of {count} numbers in a storage of {storage.count}")
    return Stored(storage, offset, shape, stride)


def _parameter(machine: Machine, arguments: tuple) -> Stored:
    if not 1 <= len(arguments) <= 3 or not isinstance(arguments[0], Stored):
        raise machine.refused("a parameter that is no tensor")
    return arguments[0]


def _dtype(machine: Machine, arguments: tuple) -> Dtype:
    code = arguments[0].lstrip("<|=") if arguments and isinstance(arguments[0], str) else ""
    if code not in _NUMPY:
        raise machine.refused(f"numpy.dtype {code[:8]!r}, which is no plain number")
    return Dtype(code)


def _scalar(machine: Machine, arguments: tuple) -> Any:
    if len(arguments) != 2 or not isinstance(arguments[0], Dtype):
        raise machine.refused("a numpy.scalar without a dtype")
    data, dtype = content(machine, arguments[1]), np.dtype(f"<{arguments[0].code}")
    if len(data) != dtype.itemsize:
        raise machine.refused(f"a numpy.scalar of {len(data)} bytes")
    return np.frombuffer(data, dtype)[0].item()


def _new_array(machine: Machine, arguments: tuple) -> Array:
    if not arguments or not isinstance(arguments[0], Name) or arguments[0].text != "numpy.ndarray":
        raise machine.refused("an array of another class than numpy.ndarray")
    return Array()


def _array(machine: Machine, shape: Any, dtype: Any, fortran: Any, data: Any) -> np.ndarray:
    if not isinstance(dtype, Dtype) or not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS \
            or any(type(size) is not int or not 0 <= size < 1 << 48 for size in shape):
        raise machine.refused("an array with an odd shape or type")
    values = np.frombuffer(content(machine, data), np.uint8)
    kind = np.dtype(f"<{dtype.code}")
    if len(values) != math.prod(shape) * kind.itemsize:
        raise machine.refused(f"an array {list(shape)} of {len(values)} bytes")
    return values.view(kind).reshape(shape, order="F" if fortran else "C")


def _from_buffer(machine: Machine, arguments: tuple) -> Array:
    """An array as protocol 5 writes it: bytes, type, shape, order."""
    if len(arguments) != 4 or arguments[3] not in ("C", "F"):
        raise machine.refused("an array in an odd order")
    data, dtype, shape, order = arguments
    return Array(_array(machine, shape, dtype, order == "F", data))


def _encoded(machine: Machine, arguments: tuple) -> bytes:
    """Bytes as protocol 2 writes them."""
    text = arguments[0] if len(arguments) == 2 and arguments[1] == "latin1" else None
    if not isinstance(text, (str, LongText)):
        raise machine.refused("an encoding other than latin1")
    try:
        if isinstance(text, LongText):
            text = str(machine.data[text.start:text.end], "utf-8")
        machine.budget.spend(len(text) // 1024)
        return text.encode("latin1")
    except UnicodeError:
        raise machine.refused("a text that is no bytes") from None


def _size(machine: Machine, arguments: tuple) -> tuple:
    if len(arguments) != 1 or not isinstance(arguments[0], (tuple, list)):
        raise machine.refused("a torch.Size of no numbers")
    machine.budget.spend(len(arguments[0]))
    return tuple(arguments[0])


VOCABULARY: Mapping[str, Callable[[Machine, tuple], Any] | None] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": _dict,
    "collections.OrderedDict": _dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,
    **{f"numpy.{core}.multiarray.{name}": make for core in ("core", "_core")
       for name, make in (("scalar", _scalar), ("_reconstruct", _new_array))},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    "_codecs.encode": _encoded,
}
