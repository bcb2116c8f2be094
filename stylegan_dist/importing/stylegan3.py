"""Files of stylegan3 (NVIDIA) whose generator is StyleGAN3's."""

from __future__ import annotations

from stylegan_dist.errors import InputError
from stylegan_dist.importing.foreign import Foreign
from stylegan_dist.importing.modules import Tree


def read(generator: Tree) -> Foreign:
    raise InputError("its generator is StyleGAN3's")
