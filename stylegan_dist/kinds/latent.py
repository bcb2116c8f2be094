"""Latents of an autoencoder, [L, R / f, R / f] of pictures of R pixels: arrays whose pictures are decoded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.kinds import encoder as encoders
from stylegan_dist.kinds.array import Array, Normalisation, checked, decode_array
from stylegan_dist.kinds.base import RESOLUTIONS, Decode, Files, Kind, Sample, option
from stylegan_dist.kinds.encoder import Encoder
from stylegan_dist.kinds.image import Image, ImageOptions
from stylegan_dist.kinds.npy import encode_array
from stylegan_dist.kinds.values import Values
from stylegan_dist.machine import usable_device
from stylegan_dist.paths import is_plain
from stylegan_dist.records import shorten

FLIPS = ("none", "stored")
_DTYPE = "float16"


@dataclass(frozen=True)
class Latents(Array):
    """Arrays with `encoder`. What is below the line is no fact of the set."""

    # ---
    home: str = field(default="", compare=False)              # folder of a run, which may hold the weights
    false_colours: bool = field(default=False, compare=False)  # show latents, as there is nothing to decode them with
    noun = "latents"

    def layout(self, channels: int) -> str:
        return f"{super().layout(channels)}, of {self._encoder.describe()} at 1/{self._encoder.form.downscale}"

    def check(self, resolution: int, channels: int) -> None:
        super().check(resolution, channels)
        form = self._encoder.form
        form.check()
        if form.latent_channels != channels:
            raise ValueError(f"the autoencoder makes latents of {form.latent_channels} channels, not of {channels}")
        if self.dtype != _DTYPE or self.key:
            raise ValueError(f"latents are stored as {_DTYPE} in npy files")
        if resolution * form.downscale > RESOLUTIONS[-1]:
            raise ValueError(f"latents of {resolution} pixels at 1/{form.downscale} are of pictures of more than "
                             f"{RESOLUTIONS[-1]}")
        if not is_plain(self._encoder.path):
            raise ValueError(f"the path of the autoencoder, {shorten(self._encoder.path)}, is no plain text")

    def identity(self) -> dict[str, Any]:
        return {"array": {**self.facts()["array"], "encoder": self._encoder.identity()}}

    def decoder(self, strict: bool) -> Decode:
        return partial(_decode, self, 0)

    def mirrored_decoder(self, strict: bool) -> Decode | None:
        return partial(_decode, self, 1) if self.mirrored else None

    @property
    def why_not_mirrored(self) -> str:
        return "" if self.mirrored else (
            "the latent of a mirrored picture is not the mirrored latent, and this set holds none of mirrored pictures: pack "
            "it again with --flips stored, or set data.mirror=false")

    def at(self, folder: Path) -> Latents:
        return replace(self, home=str(folder))

    def prepared(self, folder: Path) -> tuple[Latents, str]:
        try:
            encoders.copy_weights(self._encoder, folder)
        except InputError as error:
            return replace(self, false_colours=True), f"pictures show latents in false colours: {error}"
        except OSError as error:
            return self.at(folder), f"the autoencoder is not copied into {folder}: {error.strerror or error}"
        return self.at(folder), ""

    @torch.no_grad()
    def as_pictures(self, values: Tensor) -> Tensor:
        """Decoded one by one, so that none depends on its batch. Raises InputError where the weights are not to be had."""
        if self.false_colours:
            return super().as_pictures(values)
        network = encoders.open_autoencoder(self._encoder, self.home, values.device)
        offset, scale = self._constants(values)
        return torch.cat([network.decode(one.float() * scale + offset).clamp(-1, 1) for one in values.split(1)])

    def shown_side(self, resolution: int) -> int:
        return resolution * (1 if self.false_colours else self._encoder.form.downscale)

    @property
    def _encoder(self) -> Encoder:
        assert self.encoder, "they are latents"
        return self.encoder


def _decode(kind: Latents, which: int, data: bytes, out: np.ndarray) -> None:
    """The latent of a picture (0) or of the mirrored one (1): one half of what is stored where `mirrored`."""
    if not kind.mirrored:
        return decode_array(kind, data, out)
    height, width, channels = out.shape
    both = np.empty((height, width, 2 * channels), out.dtype)
    decode_array(kind, data, both)
    out[...] = both[..., which * channels:(which + 1) * channels]


@dataclass(frozen=True, kw_only=True)
class LatentOptions(Normalisation, ImageOptions):
    """How pictures become latents: the form that each is brought into, and what encodes it."""

    encode: str | None = option(None, "store the latents of the pictures, made by this autoencoder: a folder of train-encoder, "
                                "or one of an AutoencoderKL in the layout of diffusers", metavar="ENCODER")
    channels: int | None = option(None, "default those of the encoder", choices=(1, 3, 4), number=int)  # type: ignore[assignment]
    normalise: str = option("std", Normalisation.__dataclass_fields__["normalise"].metadata["text"],
                            choices=Normalisation.__dataclass_fields__["normalise"].metadata["choices"])
    flips: str = option("none", "stored: also the latents of the mirrored pictures, for data.mirror=true; twice the size",
                        choices=FLIPS)
    encode_device: str = option("cpu", "cpu or cuda, where the encoder computes; the last bits depend on it", metavar="DEVICE")
    encoding: str = "npy"
    quality: int = 0
    encoder: Encoder | None = None   # that of `encode`
    noun = "images"

    @property
    def raw_bytes(self) -> int:
        side, channels = self.shape
        return side**2 * channels * np.dtype(_DTYPE).itemsize * (1 + (self.flips == "stored"))

    @property
    def shape(self) -> tuple[int, int]:
        form = self._encoder.form
        return self.resolution // form.downscale, form.latent_channels

    def decisive(self) -> dict[str, Any]:
        facts = {**asdict(self), "encoder": self._encoder.identity()}
        return {name: value for name, value in facts.items() if name not in ("encode", "quality")}  # the first is a place

    def completed(self, files: Files) -> LatentOptions:
        if not self.encode:
            raise InputError("no encoder: give --encode ENCODER")
        encoder, trained_at = encoders.read_encoder(self.encode)
        form = encoder.form
        if self.channels not in (None, form.in_channels) or form.in_channels not in (1, 3, 4):
            raise InputError(f"{self.encode} encodes pictures of {form.in_channels} channels, not of {self.channels}: leave "
                             "out --channels, or choose another encoder")
        if trained_at not in (None, self.resolution):
            raise InputError(f"{self.encode} was trained on pictures of {trained_at} pixels, not of {self.resolution}: pack at "
                             f"--resolution {trained_at}, or train another encoder")
        if self.resolution % form.downscale or self.resolution // form.downscale not in RESOLUTIONS:
            raise InputError(f"{self.encode} makes latents of 1/{form.downscale} of the side, and for pictures of "
                             f"{self.resolution} pixels that is less than {RESOLUTIONS[0]}: choose a --resolution of "
                             f"{RESOLUTIONS[0] * form.downscale} or more, or an encoder that halves less often")
        return replace(self, encoder=encoder, channels=form.in_channels)

    def sample(self, data: bytes) -> Sample:
        """The latents of an image file, with one thread, one picture at a time: so they do not depend on the others.

        Raises ValueError with the reason when there are none.
        """
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        converted = self.converted(data)
        pixels = np.array(converted.image).reshape(self.resolution, self.resolution, -1)
        pictures = [pixels, pixels[:, ::-1].copy()] if self.flips == "stored" else [pixels]
        latents = np.stack([self._encoded(picture) for picture in pictures])
        if not np.isfinite(latents).all():
            raise ValueError(f"a latent with values that {_DTYPE} does not have")
        values = Values.of(latents.swapaxes(0, 1).reshape(self.shape[1], -1, self.shape[0]))
        return Sample(encode_array(latents.reshape(-1, *latents.shape[2:]), self.encoding), converted.enlarged, values)

    @torch.no_grad()
    def _encoded(self, pixels: np.ndarray) -> np.ndarray:
        """The mean of the latents of a picture, uint8 [H, W, C]: float16 [L, H / f, W / f]."""
        device = usable_device(self.encode_device, "--encode-device")
        network = encoders.open_autoencoder(self._encoder, "", device)
        picture = Image().to_network(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device))
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return network.encode(picture.contiguous())[0].half().cpu().numpy()

    def kind(self, values: Values | None) -> Kind:
        assert values is not None, "there is a sample"
        offset, scale = self.of(values)
        kind = Latents(_DTYPE, offset, scale, encoder=self._encoder, mirrored=self.flips == "stored")
        return checked(kind, *self.shape)

    def libraries(self) -> dict[str, str]:
        return {"pillow": PIL.__version__, "numpy": np.__version__, "torch": torch.__version__}

    @property
    def _encoder(self) -> Encoder:
        assert self.encoder, "the options are completed"
        return self.encoder
