"""Sounds for people: several in a row in one WAV file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stylegan_dist.files import replacing
from stylegan_dist.kinds import Kind
from stylegan_dist.kinds.audio import write_wav

MOST = 10            # in a file
GAP_SECONDS = 0.15   # of silence after each
_MOST_BINS = 1 << 21  # of their spectrograms: making sounds of large ones takes seconds


def save_sounds(path: Path, kind: Kind, values: torch.Tensor) -> bool:
    """Write the first samples as one sound, atomically: readers see the whole file or none.

    Args:
        values: [N, C, H, W] in the range of generators.
    Returns: whether samples of this kind are sounds.

    Raises:
        OSError: the file cannot be written.
    """
    most, rate = max(1, min(MOST, _MOST_BINS // values[0].numel())), 0
    pieces = []
    for one in values[:most]:
        sound = kind.as_sound(one)
        if sound is None:
            return False
        rate = sound.rate
        pieces += [sound.samples, np.zeros(round(rate * GAP_SECONDS))]
    with replacing(path) as temporary:
        write_wav(temporary, np.concatenate(pieces), rate)
    return True
