"""Trains a small autoencoder on the pictures of a shard set, as a function of (data, options).

It is that of Rombach et al. (2022), small, without a perceptual and an adversarial loss: the mean absolute error of pictures
that are decoded from a draw of the latents' distribution, and a small weight of the divergence from the standard normal
distribution. So reconstructions are smoother than those of published autoencoders.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from stylegan_dist import randomness
from stylegan_dist.data.index import DatasetIndex, load_index
from stylegan_dist.data.passes import bar_interval, batches, held_out, held_samples, new_folder
from stylegan_dist.errors import InputError
from stylegan_dist.features.network import exactly
from stylegan_dist.files import file_digest, replacing, write_whole
from stylegan_dist.kinds import Image
from stylegan_dist.kinds.autoencoder import Autoencoder, Form, divergence
from stylegan_dist.kinds.base import RESOLUTIONS, to_uint8
from stylegan_dist.kinds.encoder import CONFIG, OWN, WEIGHTS, config_of
from stylegan_dist.machine import usable_device
from stylegan_dist.monitor.images import save_grid

RECORD, STRIP = "training.json", "reconstructions.png"
HELD_OUT = "encoder.held_out"         # purpose of the draw of what is held out
_LEAST_IMAGES, _EPOCHS = 100_000, 10  # of a training whose length is not given: the greater of both
_BATCH = 8
_RATE, _WARM = 1e-3, 0.05             # learning rate at its highest, and share of the training in which it rises
_DIVERGENCE = 1e-6                    # weight (Rombach et al. 2022, section 3.1: a slight one)
_GROUPS = 8
_JUDGED = 1000                        # held-out samples at most
_SHOWN = 8                            # pictures in the strip


@dataclass(frozen=True)
class EncoderOptions:
    """What decides a training."""

    downscale: int = 4
    latent_channels: int = 4
    width: int = 16             # channels at the finest level; each coarser one has twice as many, 8 times as many at most
    seed: int = 0
    images: int | None = None   # None: ten times the data, 100,000 at least
    device: str = "cpu"
    workers: int = 0            # reader processes; they change nothing but the speed


@dataclass(frozen=True)
class Record:
    """What `training.json` says: the data that the autoencoder was trained on, how, and how well it does."""

    made_by: str
    fingerprint: str        # of the data
    resolution: int
    seed: int
    images: int             # that it was trained on, counted as often as they came
    held_out: int           # samples that it was not trained on
    judged: int             # of these, the first ones
    psnr: float             # dB, of the mean squared error of 8-bit pictures that are decoded from the means; mean of pictures
    sha256: str             # of the weights


def train_encoder(data: str | os.PathLike, out: str | os.PathLike, options: EncoderOptions) -> Record:
    """Train an autoencoder on all pictures but those held out, and save it.

    On one machine, with one PyTorch and one number of threads, the same arguments give the same files to the last bit.

    Args:
        data: as `data.shards`; a set of images.
        out: folder for the files; new or empty.

    Raises:
        InputError: the data is unusable, or too small for so much downscaling; a folder that cannot be used.
    """
    index, folder = load_index(data), Path(out)
    if not isinstance(index.kind, Image):
        raise InputError(f"{os.fspath(data)} holds {index.kind.noun}, and an autoencoder is trained on images: give shards of "
                         "images")
    if index.resolution // options.downscale < min(RESOLUTIONS):
        raise InputError(f"latents of {index.resolution} pixels / {options.downscale} are smaller than {min(RESOLUTIONS)} x "
                         f"{min(RESOLUTIONS)}: choose a smaller --downscale, or pack the data at a higher --resolution")
    device = usable_device(options.device, "--device")
    new_folder(folder)
    images = options.images or max(_LEAST_IMAGES, _EPOCHS * index.num_samples)
    form = form_of(index.channels, options)
    network = Autoencoder(form)
    _initialise(network, options.seed)
    held = held_out(index, options.seed, HELD_OUT)
    with exactly():
        _train(network.to(device), index, held, images, options)
        network.eval().requires_grad_(False)
        try:
            digest = _save_weights(network, folder)
            psnr, judged, strip = _judge(network, index, held[:_JUDGED], device)
            save_grid(folder / STRIP, strip, columns=_SHOWN, about="Held-out pictures, and below them their reconstructions.")
            record = Record(OWN, index.fingerprint, index.resolution, options.seed, images, len(held), judged, psnr, digest)
            write_whole(folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")
            write_whole(folder / CONFIG, config_of(form, made_by=OWN, sample_size=index.resolution))
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from None
    return record


def form_of(channels: int, options: EncoderOptions) -> Form:
    """The form of a small autoencoder: one residual block a level, no attention."""
    widths = tuple(options.width * min(2**level, 8) for level in range(options.downscale.bit_length()))
    return Form(channels, options.latent_channels, widths, 1, _GROUPS, False, False, False)


def _initialise(network: Autoencoder, seed: int) -> None:
    """Weights with variance 1 / inputs, drawn by seed and number. Biases 0, scales of norms 1.

    The last convolution of each residual block is a tenth of that, so that the blocks begin near the identity.
    """
    with torch.no_grad():
        for number, (name, parameter) in enumerate(network.named_parameters()):
            if parameter.dim() > 1:
                draws = randomness.normal(seed, "encoder.init", torch.tensor([number]), parameter.shape)[0]
                gain = 0.1 if name.endswith("conv2.weight") else 1.0
                parameter.copy_(draws * gain / math.sqrt(parameter[0].numel()))
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def _train(network: Autoencoder, index: DatasetIndex, held: list[int], images: int, options: EncoderOptions) -> None:
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    losses: list[Tensor] = []
    with tqdm(total=images, desc="train-encoder", unit="img", mininterval=bar_interval()) as bar:
        for nimg, number, samples, _ in batches(index, held, images, _BATCH, options.seed, options.workers):
            done = nimg / images
            rate = _RATE * min((nimg + _BATCH) / images / _WARM, 1.0) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate
            if len(number):
                pictures = index.kind.to_network(samples.to(options.device))
                mean, log_variance = network.moments(pictures)
                draws = randomness.normal(options.seed, "encoder.noise", number.to(mean.device), mean.shape[1:])
                decoded = network.decode(mean + (0.5 * log_variance).exp() * draws)
                loss = (decoded - pictures).abs().mean() + _DIVERGENCE * divergence(mean, log_variance)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.detach())
            if len(losses) >= 20:  # asking a GPU for a number waits for it
                bar.set_postfix(error=f"{float(torch.stack(losses).mean()):.4f}", refresh=False)
                losses.clear()
            bar.update(min(_BATCH, images - nimg))


def _judge(network: Autoencoder, index: DatasetIndex, held: list[int], device: torch.device) -> tuple[float, int, Tensor]:
    """Peak signal-to-noise ratio in dB, of how many pictures, and a strip: uint8 [2 n, C, H, W]."""
    ratios: list[float] = []
    shown: list[tuple[Tensor, Tensor]] = []
    for pixels, decoded in _reconstructions(network, index, held, device):
        error = (pixels.double() - decoded.double()).square().mean()
        ratios.append(10 * math.log10(255**2 / max(float(error), 1 / pixels.numel())))
        if len(shown) < _SHOWN:
            shown.append((pixels, decoded))
    if not ratios:
        raise InputError("not one of the held-out pictures can be read: stylegan-dist verify lists all damage")
    originals, copies = zip(*shown, strict=True)
    blank = [torch.full_like(originals[0], 255)] * (_SHOWN - len(shown))
    return sum(ratios) / len(ratios), len(ratios), torch.cat([*originals, *blank, *copies])


def _reconstructions(network: Autoencoder, index: DatasetIndex, held: list[int],
                     device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Held-out pictures, uint8 [1, C, H, W], and what is decoded from their latents as `pack` stores these."""
    for _, pixels, _ in held_samples(index, held):
        latents = network.encode(index.kind.to_network(pixels.to(device))).half().float()
        yield pixels, to_uint8(network.decode(latents)).cpu()


def _save_weights(network: Autoencoder, folder: Path) -> str:
    """Write the weights; returns their SHA-256. Raises OSError."""
    tensors = {name: value.cpu().contiguous() for name, value in sorted(network.state_dict().items())}
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    return file_digest(folder / WEIGHTS)
