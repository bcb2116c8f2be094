"""Faults of motion, which a feature network learns to tell apart: its features say how a clip moves.

Reversed clips are not among them, since many motions look the same backwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_dist import randomness

FAULTS = ("none", "shuffled", "frozen", "stuttering")


def with_fault(frames: Tensor, fault: Tensor, seed: int, index: Tensor) -> Tensor:
    """Clips with a fault each; what is drawn is a function of (seed, index).

    shuffled: the frames in another order; frozen: one of them all the time; stuttering: every second one is shown twice.

    Args:
        frames: [N, T, C, H, W].
        fault: int64 [N], its place in `FAULTS`.
        index: int64 [N].
    """
    count = frames.shape[1]
    place = torch.arange(count, device=frames.device)
    # The frame's number is below the drawn word, so that no two are equal and all devices choose alike.
    shuffled = (randomness.words(seed, "features.shuffle", index, count) * count + place).argsort(1)
    frozen = randomness.integers(seed, "features.freeze", index, count).expand(-1, count)
    stuttering = (place - place % 2).expand(len(index), -1)
    orders = torch.stack([place.expand(len(index), -1), shuffled, frozen, stuttering], 1)
    order = orders.gather(1, fault[:, None, None].expand(-1, -1, count))[:, 0]
    return frames.gather(1, order[:, :, None, None, None].expand(-1, -1, *frames.shape[2:]))
