"""The knobs of StyleGAN-V: its networks and its losses."""

from __future__ import annotations

from dataclasses import dataclass

from stylegan_dist.config.knobs import FIXED, MOST_IMAGES, MOST_LAYERS, MOST_MAPS, MOST_WIDTH, Auto, FamilyConfig, knob
from stylegan_dist.objective.config import GameConfig

MOST_FRAMES = 128            # of a clip, as an array has channels
MOST_FRAMES_APART = 4096


@dataclass
class GeneratorConfig(FamilyConfig):
    z_dim: int = knob(512, FIXED, "width of the latent z", least=1, most=MOST_WIDTH)
    w_dim: int = knob(512, FIXED, "width of the mapping network and of w", least=1, most=MOST_WIDTH)
    mapping_layers: int = knob(2, FIXED, "fully connected layers from z to w", least=1, most=MOST_LAYERS)
    channel_base: int | Auto = knob("auto", FIXED,
        "feature maps at resolution r are channel_base / r; auto: 32768 from 512 px", least=1, most=1 << 20)
    channel_max: int = knob(512, FIXED, "upper limit of the feature maps", least=1, most=MOST_MAPS)
    w_avg_decay: float = knob(0.995, FIXED, "decay per step of the running mean of w that truncation pulls to", least=0, most=1)
    frames: int | Auto = knob("auto", FIXED, "frames of a clip; auto: those of the data", least=3, most=MOST_FRAMES)
    loop_frames: int | Auto = knob("auto", FIXED,
        "frames after which every clip begins again; 0: never; auto: those of a clip, where those of the data loop",
        least=0, most=MOST_FRAMES_APART)
    motion_z_dim: int = knob(512, FIXED, "width of the noise of the motion", least=1, most=MOST_WIDTH)
    motion_dim: int = knob(512, FIXED, "width of what is made of that noise", least=1, most=MOST_WIDTH)
    motion_frequencies: int = knob(256, FIXED, "sines and cosines of the motion code", least=1, most=MOST_MAPS)
    motion_distance: int = knob(16, FIXED, "frames from one noise of the motion to the next", least=1, most=MOST_FRAMES_APART)
    motion_kernel: int = knob(11, FIXED, "noises that each of the two convolutions over time sees", least=1, most=64)
    motion_slowest: int = knob(1024, FIXED, "frames of the longest period of the motion code", least=1, most=1 << 20)


@dataclass
class DiscriminatorConfig:
    channel_base: int | Auto = knob("auto", FIXED, "auto: as the generator", least=1, most=1 << 20)
    channel_max: int = knob(512, FIXED, "upper limit of the feature maps", least=1, most=MOST_MAPS)
    mapping_layers: int = knob(2, FIXED,
        "fully connected layers from the distances of the frames, and the class label, to the projection",
        least=1, most=MOST_LAYERS)
    mbstd_group: int | Auto = knob("auto", FIXED,
        "clips per group of the minibatch standard deviation; auto: at most 4", least=1, most=MOST_IMAGES)


@dataclass
class LossConfig(GameConfig):
    pass


SECTIONS = {"generator": GeneratorConfig, "discriminator": DiscriminatorConfig, "loss": LossConfig}
