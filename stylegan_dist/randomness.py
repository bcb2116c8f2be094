"""Counter-based randomness: every draw is a pure function of (seed, purpose, image index).

There is no generator object and no state. A draw has an address. The same address gives the same value on every device,
in any process and in any order. A run therefore does not depend on the number of ranks, on micro-batches or on
interruptions.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). It maps
a 128-bit counter and a 64-bit key to four 32-bit words. The address is

    key     = (seed, purpose)                      purpose: CRC-32 of a readable name such as "g_main.z"
    counter = (block, substream, index, index >> 32)

`block` counts groups of four words inside one draw. `substream` is free for the caller: layer noise uses the layer
number. All arithmetic is in int64, where the low 64 bits of a product are exact on CPU, CUDA and NumPy alike.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from stylegan_dist.ranges import MOST_SEED

MASK32 = 0xFFFFFFFF
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
SEED_LIMIT = MOST_SEED + 1
_KEYS_AT_ONCE = 16384  # so that the intermediate results stay in a core's cache


def purpose_id(name: str) -> int:
    """The 32-bit key word of a purpose, stable for ever because it depends on the name alone."""
    return zlib.crc32(name.encode())


def philox4x32(c0, c1, c2, c3, key0, key1):
    """Philox4x32-10 on broadcastable int64 arrays (NumPy or torch), or numbers, of values in [0, 2^32).

    Returns four int64 arrays of 32-bit words. Source: Salmon et al. 2011, section 3.3.
    """
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIER[0]
        product1 = c2 * _MULTIPLIER[1]
        # The shift is arithmetic, so the mask removes the copies of the sign bit.
        c0, c1, c2, c3 = (
            ((product1 >> 32) & MASK32) ^ c1 ^ key0,
            product1 & MASK32,
            ((product0 >> 32) & MASK32) ^ c3 ^ key1,
            product0 & MASK32,
        )
        key0 = (key0 + _WEYL[0]) & MASK32
        key1 = (key1 + _WEYL[1]) & MASK32
    return c0, c1, c2, c3


def words(seed: int, purpose: str, index: torch.Tensor, count: int) -> torch.Tensor:
    """`count` random 32-bit words for each image.

    Args:
        seed: the run's seed, 0 <= seed < 2^32.
        purpose: what the draw is for; different names give independent streams.
        index: global image indices, int64 [N], on the device that the result should be on.
        count: words per image.
    Returns: int64 [N, count], values in [0, 2^32).
    """
    block = torch.arange((count + 3) // 4, device=index.device)
    return _addressed(seed, purpose, index, block, torch.zeros_like(block)).flatten(1)[:, :count]


def seed_after(seed: int, rollbacks: int) -> int:
    """The seed of draws that are to be others after so many roll-backs; `seed` itself after none."""
    return int(words(seed, "guard.seed", torch.tensor([rollbacks]), 1)) if rollbacks else seed


def uniform(seed: int, purpose: str, index: torch.Tensor, count: int = 1) -> torch.Tensor:
    """Uniform draws in [0, 1) with 24 bits, exactly representable: float32 [N, count]."""
    return (words(seed, purpose, index, count) >> 8).float() * 2.0**-24


def integers(seed: int, purpose: str, index: torch.Tensor, high: int, count: int = 1) -> torch.Tensor:
    """Uniform integers in [0, high), high <= 2^31: int64 [N, count] (bias below high / 2^32)."""
    return (words(seed, purpose, index, count) * high) >> 32


def normal(seed: int, purpose: str, index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal draws for each image: float32 [N, *shape]."""
    count = math.prod(shape)
    block = torch.arange((count + 3) // 4, device=index.device)
    draws = _box_muller(_addressed(seed, purpose, index, block, torch.zeros_like(block)))
    return draws.flatten(1)[:, :count].reshape(index.shape[0], *shape)


class NoiseAddresses:
    """The counters of all per-layer noise maps of a network, so that one call draws them all.

    Layer l's map is substream l of the purpose, so a layer's noise does not depend on which other
    layers exist at the same time.

    Args:
        shapes: (height, width) of each layer's map.
        device: where the noise is wanted.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device):
        self.shapes = list(shapes)
        counts = [(h * w + 3) // 4 for h, w in shapes]
        self.blocks_per_layer = counts
        self.block = torch.cat([torch.arange(n, device=device) for n in counts])
        self.layer = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(counts)])

    def draw(self, seed: int, purpose: str, index: torch.Tensor) -> list[torch.Tensor]:
        """Noise maps float32 [N, 1, H, W], one per layer, for global image indices int64 [N]."""
        draws = _box_muller(_addressed(seed, purpose, index, self.block, self.layer))
        maps = []
        for (height, width), layer in zip(self.shapes, draws.split(self.blocks_per_layer, dim=1), strict=True):
            flat = layer.flatten(1)[:, : height * width]
            maps.append(flat.reshape(index.shape[0], 1, height, width))
        return maps


def noise_address(seed: int, purpose: str, index: torch.Tensor) -> torch.Tensor:
    """The address from which layers draw their noise: int64 [N, 2], the Philox key and the image number of each image.

    It is a tensor, so that compiled, exported and recorded networks take it as an input.
    """
    key = purpose_id(purpose) << 32 | seed
    key -= (key >> 63) << 64  # as a signed number
    return torch.stack([torch.full_like(index, key), index], dim=1)


def layer_noise(address: torch.Tensor, layer: int, shape: Sequence[int]) -> torch.Tensor:
    """The map of one layer that `NoiseAddresses.draw` would draw: float32 [N, 1, H, W].

    Args:
        address: int64 [N, 2], from `noise_address`.
        layer: number of the layer.
        shape: (H, W).
    """
    key, index = address[:, :1], address[:, 1:]
    block = torch.arange((math.prod(shape) + 3) // 4, device=address.device)[None]
    words = philox4x32(block, torch.full_like(block, layer), *_index_words(index), *_index_words(key))
    draws = _box_muller(torch.stack(torch.broadcast_tensors(*words), dim=-1))
    return draws.flatten(1)[:, : math.prod(shape)].reshape(address.shape[0], 1, *shape)


def permutation(seed: int, purpose: str, index: int, size: int) -> np.ndarray:
    """A random permutation of range(size), int64 [size], as a pure function of its arguments.

    The order of 64-bit Philox keys, equal ones in the order of their numbers, so the result does not depend on NumPy.
    """
    return permutations(seed, purpose, [index], size)[0].astype(np.int64)


def permutations(seed: int, purpose: str, indices: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """The permutations of several indices, [len(indices), size], of the smallest unsigned dtype that holds their values."""
    orders = np.empty((len(indices), size), np.min_scalar_type(max(size - 1, 0)))
    bits = np.uint64(size.bit_length())
    low = (np.uint64(1) << bits) - np.uint64(1)
    rows = max(1, _KEYS_AT_ONCE // max(size, 1))
    for first in range(0, len(indices), rows):
        some = np.asarray(indices[first:first + rows], np.int64)[:, None]
        keys = np.empty((len(some), size), np.uint64)
        for begin in range(0, size, _KEYS_AT_ONCE):
            end = min(size, begin + _KEYS_AT_ONCE)
            keys[:, begin:end] = _keys(seed, purpose_id(purpose), some, begin, end)
        # Numbers in place of the lower bits: sorting these takes a third of the time of argsort.
        numbered = keys & ~low
        numbered |= np.arange(size, dtype=np.uint64)
        numbered.sort(axis=1)
        upper = numbered >> bits
        if (upper[:, 1:] == upper[:, :-1]).any():  # one in 30,000 permutations of 100,000: the lower bits decide
            orders[first:first + rows] = np.argsort(keys, kind="stable")
        else:
            orders[first:first + rows] = numbered & low
    return orders


def _keys(seed: int, purpose: int, indices: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The first two Philox words of blocks begin, ..., end - 1 of some images, as one number: uint64 [k, end - begin].

    `philox4x32` on unsigned numbers, where a shift needs no mask: half the time. In the first rounds most words are still
    the same for all blocks, or for all images, and the last one needs only half of its words.

    Args:
        indices: int64 [k, 1].
    """
    shift, mask = np.uint64(32), np.uint64(MASK32)
    multiplier0, multiplier1 = (np.uint64(number) for number in _MULTIPLIER)
    c0, c1 = np.arange(begin, end, dtype=np.uint64)[None], np.zeros((1, 1), np.uint64)
    c2, c3 = (word.astype(np.uint64) for word in _index_words(indices))
    key0, key1 = np.uint64(seed), np.uint64(purpose)
    for _ in range(_ROUNDS - 1):
        product0, product1 = c0 * multiplier0, c2 * multiplier1
        c0 = product1 >> shift ^ (c1 ^ key0)
        c2 = product0 >> shift ^ (c3 ^ key1)
        c1, c3 = product1 & mask, product0 & mask
        key0, key1 = (key0 + np.uint64(_WEYL[0])) & mask, (key1 + np.uint64(_WEYL[1])) & mask
    return c2 * multiplier1 ^ (c1 ^ key0) << shift


def coins(seed: int, purpose: str, first: int, count: int) -> list[bool]:
    """Whether the `uniform` draw of images first, ..., first + count - 1 is below 1/2.

    In NumPy, because for the images of a batch torch would spend five times as long, on calls alone.
    """
    zero = np.zeros(1, np.int64)
    low, high = _index_words(np.arange(first, first + count))
    word, *_ = philox4x32(zero, zero, low, high, seed, purpose_id(purpose))
    return (word >> 31 == 0).tolist()


def _index_words(index):
    return index & MASK32, (index >> 32) & MASK32


def _addressed(seed: int, purpose: str, index: torch.Tensor, block: torch.Tensor, substream: torch.Tensor):
    """Words at every (image, block) address: int64 [N, blocks, 4]."""
    low, high = _index_words(index.to(torch.int64)[:, None])
    result = philox4x32(block[None], substream[None], low, high, seed, purpose_id(purpose))
    return torch.stack(torch.broadcast_tensors(*result), dim=-1)


def _box_muller(random_words: torch.Tensor) -> torch.Tensor:
    """Standard normals from pairs of 32-bit words (Box and Muller 1958): int64 [..., 4] -> float32 [..., 4].

    Computed in float64 and rounded once. The last bits of log, sin and cos differ between math libraries. They hardly ever
    survive the rounding, so CPU and GPU draw the same noise.
    """
    u = (random_words.double() + 0.5) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0::2]))
    angle = (2.0 * math.pi) * u[..., 1::2]
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(-2).float()
