"""A feature network for data that photographs say nothing about: a small classifier of the user's own samples.

It is saved as two files, `features.safetensors` and `features.json`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from torch import Tensor, nn

from stylegan_dist import randomness
from stylegan_dist.errors import InputError
from stylegan_dist.features.inputs import OwnSamples
from stylegan_dist.features.layers import Maps, Trunk, load_trunk
from stylegan_dist.features.network import FeatureNetwork, Taught
from stylegan_dist.features.weights import open_hashed
from stylegan_dist.files import file_digest, replacing, write_whole
from stylegan_dist.kinds import Array, declared
from stylegan_dist.kinds.base import MAX_CHANNELS, RESOLUTIONS
from stylegan_dist.records import Count, Digest, read_record

RECORD, WEIGHTS = "features.json", "features.safetensors"
MOST_CLASSES = 100_000
_MOST_JSON = 1 << 24     # bytes
_MOST_BYTES = 1 << 28    # of the weights
_LAST = 4                # pixels of the side of the last maps
_GROUP = 8               # channels that are normalised together


def _width(resolution: int) -> int:
    """Channels of the maps of so many pixels."""
    return min(max(512 // resolution, 16), 128)


class _Block(nn.Module):
    """A residual block with normalisation before each convolution (He et al. 2016, "Identity mappings", figure 4e)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(inputs // _GROUP, inputs), nn.GroupNorm(outputs // _GROUP, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.relu(self.norm2(y)))


class OwnNetwork(Trunk):
    """A block for each resolution from half of the samples' down to 4 x 4; features 128 are the mean of the last maps.

    Groups of channels are normalised in each sample alone (Wu and He 2018), so that a sample never depends on its batch.

    Args:
        resolution, channels: of samples, in the range of generators.
        classes: labels.
    """

    def __init__(self, resolution: int, channels: int, classes: int):
        super().__init__()
        self.classes = classes
        width = _width(resolution)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        blocks = []
        while resolution > _LAST:
            resolution //= 2
            blocks.append(_Block(width, _width(resolution)))
            width = _width(resolution)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(width // _GROUP, width)
        self.fc = nn.Linear(width, classes)
        self.dimensions = width

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(F.avg_pool2d(x, 2))
            if maps is not None:
                maps.append(x)
        return F.relu(self.norm(x)).mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def initialise(self, seed: int) -> None:
        """Weights with variance 2 / inputs (He et al. 2015), drawn by seed and number. Biases 0, scales of norms 1."""
        with torch.no_grad():
            for number, (name, parameter) in enumerate(self.named_parameters()):
                if parameter.dim() > 1:
                    draws = randomness.normal(seed, "features.init", torch.tensor([number]), parameter.shape)[0]
                    parameter.copy_(draws * math.sqrt(2 / parameter[0].numel()))
                else:
                    parameter.fill_(1.0 if name.endswith("weight") else 0.0)


@dataclass(frozen=True)
class OwnRecord:
    """What `features.json` says: the data that the network was trained on, and how."""

    resolution: Annotated[int, Field(ge=min(RESOLUTIONS), le=max(RESOLUTIONS))]
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    classes: Annotated[int, Field(ge=2, le=MOST_CLASSES)]
    fingerprint: Digest     # of the data
    seed: Count
    images: Count           # that it was trained on, counted as often as they came
    held_out: Count         # samples that it was not trained on
    accuracy: Annotated[float, Field(ge=0, le=1)]  # on those
    sha256: Digest          # of the weights
    array: Array | None = None
    learned: Literal["labels", "motion"] = "labels"
    format: Literal["stylegan-dist-features"] = "stylegan-dist-features"
    version: Literal[1] = 1

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def own_features(network: OwnNetwork, samples: OwnSamples, sha256: str, device: torch.device | str,
                 taught: Taught | None = None, learned: str = "labels") -> FeatureNetwork:
    """The network as metrics use it, named after its weights, and after the motion of clips if it has learned that."""
    name = f"{'motion' if learned == 'motion' else 'own'}_{sha256[:8]}"
    return FeatureNetwork(name, sha256, network, samples, device, taught)


def save_weights(network: OwnNetwork, folder: Path) -> str:
    """Write the weights; returns their SHA-256. Raises OSError."""
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(safetensors.torch.save({name: value.detach().cpu().contiguous()
                                                      for name, value in sorted(network.state_dict().items())}))
    return file_digest(folder / WEIGHTS)


def save_record(record: OwnRecord, folder: Path) -> None:
    """Write what makes the weights a feature network. Raises OSError."""
    facts = {name: value for name, value in asdict(record).items() if value is not None}
    write_whole(folder / RECORD, json.dumps(facts, indent=1) + "\n")


def open_own(folder: Path, device: torch.device | str) -> FeatureNetwork:
    """A network that `stylegan-dist train-features` has made.

    Raises:
        InputError: a file is missing, damaged or forged.
    """
    path, weights = folder / RECORD, folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"no {RECORD} in {folder}: give the folder that `stylegan-dist train-features SHARDS OUT` has made")
    again = "train the features again"
    try:
        with open(path, "rb") as file:
            record = read_record(OwnRecord, file.read(_MOST_JSON + 1), _MOST_JSON)
        kind = declared(record.array)
        kind.check(record.resolution, record.channels)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): {again}") from None
    content, digest, size = open_hashed(weights)
    with content:
        if digest != record.sha256 or size > _MOST_BYTES:
            raise InputError(f"{weights} is damaged or of another training ({size} bytes, SHA-256 {digest} instead of "
                             f"{record.sha256}): {again}")
        try:
            network = load_trunk(OwnNetwork, safetensors.torch.load(content.read()), resolution=record.resolution,
                                 channels=record.channels, classes=record.classes)
        except (SafetensorError, ValueError) as error:
            raise InputError(f"{weights} is damaged ({' '.join(str(error).split())}): {again}") from None
    assert isinstance(network, OwnNetwork), "that was asked for"
    taught = Taught(record.fingerprint, record.accuracy, kind) if record.learned == "labels" else None
    return own_features(network, OwnSamples(kind, record.resolution, record.channels), digest, device, taught, record.learned)
