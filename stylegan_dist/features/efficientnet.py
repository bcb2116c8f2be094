"""EfficientNet-Lite0: inverted residuals (Sandler et al. 2018) in the sizes of EfficientNet-B0 (Tan and Le 2019).

The Lite variant has ReLU6, no squeeze-and-excitation, and a stem and a head of fixed width. Convolutions are padded as in
TensorFlow, where the weights come from.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from stylegan_dist.features.layers import Convolution, Maps, Trunk

# Table 1 of Tan and Le 2019: kernel, stride of the first block, expansion, width, number of blocks.
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
           (3, 1, 6, 320, 1))
_KEPT = (0, 2, 4, 10, 15)  # the last block before each halving: 1/2, 1/4, ..., 1/32 of the input
_NAMES = {"depthwise_conv": "depthwise.conv", "project_conv": "project.conv", "expand_conv": "expand.conv",
          "bn0": "expand.bn", "bn1": "depthwise.bn", "bn2": "project.bn"}


class _Block(nn.Module):
    """Widen, filter each channel, narrow; the input is added where it has the same shape."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, (1, 1), activation="relu6") if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(inner, inner, (kernel, kernel), stride, groups=inner, padding="same", activation="relu6")
        self.project = Convolution(inner, outputs, (1, 1), activation="linear")
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class EfficientNetLite0(Trunk):
    """Features 1280, the input of the classifier of ImageNet's 1000 classes; x is (pixel - 127) / 128."""

    dimensions = 1280
    classes = 1000

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, (3, 3), 2, padding="same", activation="relu6")
        blocks, width = [], 32
        for kernel, stride, expansion, outputs, count in _STAGES:
            for number in range(count):
                blocks.append(_Block(width, outputs, kernel, 1 if number else stride, expansion))
                width = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = Convolution(width, self.dimensions, (1, 1), activation="relu6")
        self.fc = nn.Linear(self.dimensions, self.classes)

    @classmethod
    def rename(cls, name: str) -> str | None:
        if name.endswith("num_batches_tracked"):
            return None
        if match := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name):
            return f"blocks.{match[1]}.{_NAMES.get(match[2], match[2])}.{match[3]}"
        for theirs, ours in (("_conv_stem", "stem.conv"), ("_bn0", "stem.bn"), ("_conv_head", "head.conv"),
                             ("_bn1", "head.bn"), ("_fc", "fc")):
            if name.startswith(theirs + "."):
                return ours + name[len(theirs):]
        return name

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if maps is not None and number in _KEPT:
                maps.append(x)
        return self.head(x).mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features)
