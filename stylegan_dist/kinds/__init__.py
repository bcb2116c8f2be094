"""Kinds of samples: images, arrays, sounds, clips, latents, text. Each kind is one module behind the interface in `base`.

A kind has two sides. A `Kind` says what the samples of a set are: it decodes them, brings them to the network's range and
back, and shows and saves them. A `Packing` has the options with which `pack` makes samples of that kind from files.
"""

from __future__ import annotations

from stylegan_dist.kinds.array import Array, ArrayOptions
from stylegan_dist.kinds.base import Kind, Packing
from stylegan_dist.kinds.clip import Clip, ClipOptions
from stylegan_dist.kinds.image import Image, ImageOptions
from stylegan_dist.kinds.latent import LatentOptions, Latents
from stylegan_dist.kinds.sound import Sound, SoundOptions
from stylegan_dist.kinds.text import Text, TextOptions

# By the noun of the command line. `pack` takes the first kind that a source holds files of.
PACKINGS: dict[str, type[Packing]] = {"images": ImageOptions, "arrays": ArrayOptions, "sounds": SoundOptions,
                                      "videos": ClipOptions, "latents": LatentOptions, "text": TextOptions}


def declared(array: Array | None) -> Kind:
    """The kind of a set that declares `array` in its `index.json`, as all sets but those of images do."""
    if array is None:
        return Image()
    if array.encoder:
        return Latents(**vars(array))
    if array.film:
        return Clip(**vars(array))
    if array.text:
        return Text(**vars(array))
    return Sound(**vars(array)) if array.log_mel or array.spectrum else array
