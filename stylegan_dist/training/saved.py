"""Reads one checkpoint. Every value is checked, because a disk may have damaged it or somebody may have made it up."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stylegan_dist import augment
from stylegan_dist.errors import InputError
from stylegan_dist.families import DEFAULT, family_named
from stylegan_dist.kinds import Array, declared
from stylegan_dist.kinds.base import MAX_CHANNELS, RESOLUTIONS
from stylegan_dist.records import Count, Digest, read_record
from stylegan_dist.training.statistics import WINDOW

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
NAMES = ("g", "d", "g_ema", "optimizer_g", "optimizer_d")  # of the tensor files, without ending
IMPORTED = "imported:"  # begins the fingerprint of the data where a checkpoint was imported without them
MAX_JSON = 1 << 24  # bytes of a manifest or a state
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Float32 = Annotated[float, AfterValidator(lambda value: torch.tensor(value).item())]  # what is larger becomes infinite
Expected = Mapping[str, tuple[torch.Size, torch.dtype]]  # name of a tensor -> what it must be
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class FileMeasure:
    """What a manifest promises of a file."""

    bytes: Count
    sha256: Digest


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    files: dict[str, FileMeasure]


@dataclass(frozen=True)
class SavedData:
    """What a checkpoint says of the data."""

    fingerprint: str
    resolution: Annotated[int, Field(ge=min(RESOLUTIONS), le=max(RESOLUTIONS))]
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    num_classes: Annotated[int, Field(ge=0, le=2**31 - 1)]
    array: Array | None = None  # what sets of arrays and sounds declare

    def __post_init__(self) -> None:
        if self.resolution not in RESOLUTIONS:
            raise ValueError(f"no networks of {self.resolution} pixels exist")
        declared(self.array).check(self.resolution, self.channels)

    def facts(self) -> dict[str, Any]:
        """As state.json has them."""
        found = {name: getattr(self, name) for name in ("fingerprint", "resolution", "channels", "num_classes")}
        return found | declared(self.array).facts()


@dataclass
class RollBack:
    """A return to an earlier checkpoint."""

    at: Count    # images seen when it was decided
    to: Count    # images seen at the checkpoint
    reason: str


@dataclass(frozen=True)
class Origin:
    """The weights with which a run has begun.

    Attributes:
        init_from: as it was configured.
        path: the folder of the checkpoint, or the file.
        nimg: images that the checkpoint had seen; 0 for a file.
        sha256: of the checkpoint's manifest, which has those of all its files; or of the file.
        table: (networks, what became of them, names) of all tensors, for people.
    """

    init_from: str
    path: str
    nimg: Count
    sha256: Digest
    table: list[tuple[str, str, str]] = field(default_factory=list)

    def describe(self) -> str:
        at = f", {self.nimg / 1000:g} kimg" if self.nimg else ""
        return f"{self.path}{at}, SHA-256 {self.sha256[:12]}"


@dataclass
class SavedState:
    """The content of state.json, the running statistics of the objective apart."""

    nimg: Annotated[int, Field(ge=1, le=2**63 - 1)]
    segment: Count
    statistics: dict[str, tuple[Int64 | Float32, Count]]
    data: SavedData
    config: dict[str, Any]
    replaced: Count = 0  # older checkpoints do not count
    broken_steps: list[Annotated[int, Field(ge=0, lt=WINDOW)]] = field(default_factory=list)  # as of `BrokenSteps`
    rollbacks: list[RollBack] = field(default_factory=list)
    origin: Origin | None = None
    running: dict[str, Float32] = field(default_factory=dict)  # those of the family; beside the other fields in the file


def checkpoint_folder(run_dir: Path, nimg: int) -> Path:
    return run_dir / FOLDER / f"nimg-{nimg:08d}"


def file_names(name: str, count: int) -> list[str]:
    """The files in which the tensors of a name are, cut into `count` parts."""
    if count == 1:
        return [f"{name}.safetensors"]
    return [f"{name}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def read_manifest(folder: Path) -> tuple[dict[str, FileMeasure], dict[str, list[str]]]:
    """Measures by file, and for each of `NAMES` its files in order.

    Raises:
        InputError: it is missing or damaged; does not name all files of a checkpoint; names anything else.
    """
    files = _record(Manifest, _content(folder / MANIFEST), folder / MANIFEST).files
    layout = {}
    for name in NAMES:
        parts = [file for file in files if re.fullmatch(rf"{name}(-\d{{5}}-of-\d{{5}})?\.safetensors", file)]
        layout[name] = file_names(name, max(len(parts), 1))
        if sorted(parts) != layout[name]:
            raise InputError(f"{folder / MANIFEST} is damaged (it does not name all files of {name})")
    known = {STATE, *(file for parts in layout.values() for file in parts)}
    if files.keys() != known:
        wrong = min(files.keys() ^ known)
        raise InputError(f"{folder / MANIFEST} is damaged ("
                         + (f"it does not name {wrong})" if wrong in known else f"{wrong[:80]!r} is no file of a checkpoint)"))
    return files, layout


def load_state(folder: Path) -> SavedState:
    """The content of state.json.

    Raises:
        InputError: it is missing or damaged, or of another checkpoint than the folder's name says.
    """
    path = folder / STATE
    content = _content(path)
    state = _record(SavedState, content, path)
    generator = state.config.get("generator")
    family = str(generator.get("family", DEFAULT)) if isinstance(generator, dict) else DEFAULT
    running: list[tuple] = [(name, Float32) for name in family_named(family).objective.RUNNING]
    running += [(name, Float32, 0.0) for name in augment.RUNNING]  # there where p was controlled; else it begins
    state.running = dict(vars(_record(make_dataclass("Running", running), content, path)))
    if folder.name != f"nimg-{state.nimg:08d}":
        raise InputError(f"{path} is damaged (its nimg is {state.nimg}, which is not that of the folder)")
    return state


class SavedTensors(Mapping[str, Tensor]):
    """Tensors of a checkpoint by name, each read from the disk when it is asked for, on the CPU.

    Args:
        name: one of `NAMES`.
        file: the tensors are in this file, which is no part of a checkpoint.
    Raises:
        InputError: a file is missing or damaged, or a value is not finite (see `sound`), now or when it is asked for.
    """

    def __init__(self, folder: Path, name: str, file: str = ""):
        self.name = name
        self.path = folder / (file or f"{name}.safetensors")  # for messages: it may be cut into parts
        self._where: dict[str, tuple[Path, Any]] = {}
        for path in (folder / part for part in ([file] if file else read_manifest(folder)[1][name])):
            with _explained(path):
                opened = safe_open(path, framework="pt")
                for key in opened.keys():  # noqa: SIM118 - not a dictionary
                    if key in self._where:
                        raise InputError(f"{path} is damaged ({key} is in {self._where[key][0].name}, too)")
                    if opened.get_slice(key).get_dtype() not in DTYPES:
                        raise InputError(f"{path} is damaged ({key} has the type {opened.get_slice(key).get_dtype()})")
                    self._where[key] = path, opened

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of all, without reading values."""
        return {key: torch.Size(file.get_slice(key).get_shape()) for key, (_, file) in self._where.items()}

    def must_fit(self, expected: Expected, what: str = "network") -> None:
        """Compare names, shapes and types, without reading values.

        Raises:
            InputError: one is missing, too many, or another.
        """
        for key in expected:
            if key not in self._where:
                raise InputError(f"{self.path} does not fit the configured {what}: it has no {key}")
        for key, (path, file) in self._where.items():
            if key not in expected:
                raise InputError(f"{path} does not fit the configured {what}: {key} is not a part of that")
            part, (shape, dtype) = file.get_slice(key), expected[key]
            if part.get_shape() != list(shape):
                raise InputError(f"{path} does not fit the configured {what}: {key} has the shape {part.get_shape()} "
                                 f"instead of {list(shape)}")
            if DTYPES[part.get_dtype()] != dtype:
                raise InputError(f"{path} does not fit the configured {what}: {key} has the type {part.get_dtype()} "
                                 f"instead of {str(dtype).removeprefix('torch.')}")

    def __getitem__(self, key: str) -> Tensor:
        path, file = self._where[key]
        with _explained(path):
            value = file.get_tensor(key)
        if not sound(self.name, value):
            raise InputError(f"{path} is damaged ({key} has values that are not finite)")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def sound(name: str, value: Tensor) -> bool:
    """Whether a run can go on with a tensor of the file `name`.

    Weights must be finite. The state of an optimizer may have infinities: the square of a large finite gradient overflows, and
    the update divided by it becomes zero. The state must have no NaN, because the weights would have it a step later.
    """
    if not value.is_floating_point() or bool(value.sum().isfinite()):  # one fast pass; a sum may overflow, so look closer
        return True
    return not bool(value.isnan().any()) if name.startswith("optimizer_") else bool(value.isfinite().all())


def load_network(network: nn.Module, folder: Path, name: str) -> None:
    """Set parameters and buffers; every name, shape and type must fit. A network on the meta device is only compared.

    Raises:
        InputError: the file is damaged or does not fit.
    """
    saved = SavedTensors(folder, name)
    saved.must_fit(expected_of(network.state_dict()))
    if next(network.parameters()).device.type != "meta":
        network.load_state_dict(dict(saved))


def expected_of(tensors: Mapping[str, Any]) -> Expected:
    """What the file of such tensors (or of `Sharded` ones) must hold."""
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path} is missing")
        with open(path, "rb") as file:
            return file.read(MAX_JSON + 1)
    except OSError as error:
        raise InputError(f"{path} is damaged ({error})") from None


def _record(kind: type[_Record], content: bytes, path: Path) -> _Record:
    try:
        return read_record(kind, content, MAX_JSON)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})") from None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
