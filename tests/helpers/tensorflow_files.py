"""Small networks in the structure of the TensorFlow versions of StyleGAN2, with random variables under the names and in the
layouts of those, and their pickles."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from foreign_files import SOURCE, standing_in

Z, W, BASE, MOST = 10, 12, 48, 8  # latents, and feature maps min(2 BASE / r, MOST)


class Network:
    """Stands for the class of that name."""

    def __init__(self, function: str, version: int, arguments: dict[str, Any], variables: dict[str, Any],
                 **components: Network):
        self.version, self.name, self.static_kwargs, self.components = version, function, arguments, components
        self.build_module_src, self.build_func_name = SOURCE, function
        self.variables = [*variables.items()]


class Draw(dict):
    """Variables, float32. The scalars are NumPy scalars, as TensorFlow gives them.

    Weights of convolutions are large, so that the 1e-8 in the demodulation, which one sums with scaled weights and another
    with those as they are, is nothing beside them. Biases of styles have few digits, so that one can be added without rounding.
    """

    def __init__(self, seed: int):
        super().__init__()
        self._random = np.random.default_rng(seed)

    def array(self, name: str, *shape: int, scale: float = 1.0) -> None:
        self[name] = (self._random.standard_normal(shape) * scale).astype(np.float32)

    def dense(self, name: str, inputs: int, outputs: int, rate: float = 1.0) -> None:
        self.array(f"{name}/weight", inputs, outputs, scale=1 / rate)
        self.array(f"{name}/bias", outputs, scale=0.3 / rate)

    def convolution(self, name: str, kernel: int, inputs: int, outputs: int, scale: float = 1.0) -> None:
        self.array(f"{name}/weight", kernel, kernel, inputs, outputs, scale=scale)
        self.array(f"{name}/bias", outputs, scale=0.3)

    def modulated(self, name: str, kernel: int, inputs: int, outputs: int) -> None:
        self.convolution(name, kernel, inputs, outputs, scale=30 if kernel == 3 else 1)
        self.array(f"{name}/mod_weight", W, inputs, scale=0.3)
        self[f"{name}/mod_bias"] = np.round(self._random.standard_normal(inputs) * 64).astype(np.float32) / 256
        if kernel == 3:
            self[f"{name}/noise_strength"] = np.float32(self._random.standard_normal() * 0.5)


def maps(resolution: int) -> int:
    return min(2 * BASE // resolution, MOST)


def generator(seed: int, resolution: int = 16, channels: int = 3, layers: int = 3, classes: int = 0, version: int = 4,
              **arguments: Any) -> Network:
    top, mapping, synthesis = Draw(seed), Draw(seed + 100), Draw(seed + 200)
    if version < 5:
        top["lod"] = np.float32(0)
    top.array("dlatent_avg", W)
    if classes:
        mapping.dense("LabelEmbed", classes, W)
    for i in range(layers):
        mapping.dense(f"Dense{i}", W if i else Z + (W if classes else 0), W, 0.01)
    synthesis.array("4x4/Const/const", 1, maps(4), 4, 4)
    synthesis.modulated("4x4/Conv", 3, maps(4), maps(4))
    synthesis.modulated("4x4/ToRGB", 1, maps(4), channels)
    synthesis.array("noise0", 1, 1, 4, 4)
    for power in range(3, resolution.bit_length()):
        r = 1 << power
        synthesis.array(f"noise{2 * power - 5}", 1, 1, r, r)
        synthesis.array(f"noise{2 * power - 4}", 1, 1, r, r)
        synthesis.modulated(f"{r}x{r}/Conv0_up", 3, maps(r // 2), maps(r))
        synthesis.modulated(f"{r}x{r}/Conv1", 3, maps(r), maps(r))
        synthesis.modulated(f"{r}x{r}/ToRGB", 1, maps(r), channels)
    given = {"num_channels": channels, "resolution": resolution, "label_size": classes, "fmap_base": BASE, "fmap_max": MOST,
             "latent_size": Z, "dlatent_size": W, "mapping_layers": layers, "mapping_fmaps": W, "label_fmaps": W,
             "style_mixing_prob": None, **arguments}
    return Network("G_main", version, given, top, mapping=Network("G_mapping", version, given, mapping),
                   synthesis=Network("G_synthesis", version, given | {"randomize_noise": True}, synthesis))


def discriminator(seed: int, resolution: int = 16, channels: int = 3, classes: int = 0, layers: int = 0, version: int = 4,
                  residual: bool = True, **arguments: Any) -> Network:
    own = Draw(seed)
    if classes:
        own.dense("LabelEmbed", classes, MOST)
        for i in range(layers):
            own.dense(f"Mapping{i}", MOST, MOST, 0.01)
    own.convolution(f"{resolution}x{resolution}/FromRGB", 1, channels, maps(resolution))
    for power in range(resolution.bit_length() - 1, 2, -1):
        r = 1 << power
        own.convolution(f"{r}x{r}/Conv0", 3, maps(r), maps(r))
        own.convolution(f"{r}x{r}/Conv1_down", 3, maps(r), maps(r // 2))
        if residual:
            own.array(f"{r}x{r}/Skip/weight", 1, 1, maps(r), maps(r // 2))
    own.convolution("4x4/Conv", 3, maps(4) + 1, maps(4))
    own.dense("4x4/Dense0", maps(4) * 16, MOST)
    own.dense("Output", MOST, MOST if classes else 1)
    given = {"num_channels": channels, "resolution": resolution, "label_size": classes, "fmap_base": BASE, "fmap_max": MOST,
             **arguments}
    return Network("D_main" if version == 5 else "D_stylegan2", version, given, own)


def variables(network: Network, name: str = "") -> dict[str, np.ndarray]:
    """All variables of a network, in float64, or those of a component."""
    parts = [("", network), *((f"{key}/", part) for key, part in network.components.items())]
    return {prefix + key: np.asarray(value, np.float64) for prefix, part in parts for key, value in part.variables}


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    with standing_in(dnnlib__tflib__network={"Network": Network}), open(path, "wb") as file:
        pickle.dump(content, file, protocol)
    return path
