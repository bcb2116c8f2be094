"""Sounds, as log-mel spectrograms [1, bands, frames]: arrays that can be heard."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.kinds import audio
from stylegan_dist.kinds.array import Array, Normalisation, checked
from stylegan_dist.kinds.audio import MAX_WINDOW, LogMel
from stylegan_dist.kinds.base import RESOLUTIONS, Files, Kind, Packing, Sample, first_readable, option
from stylegan_dist.kinds.npy import ENCODINGS, PACKED_KEY, encode_array
from stylegan_dist.kinds.values import Values
from stylegan_dist.ranges import Range

_HOP_SECONDS = 0.016       # by the automatic rule, to the next power of two
_WINDOW_HOPS = (2, 4, 8)   # by the automatic rule, the first that tells all bands apart


@dataclass(frozen=True)
class Sound(Array):
    """Arrays with `log_mel`. Low tones are at the bottom of the pictures."""

    def check(self, resolution: int, channels: int) -> None:
        super().check(resolution, channels)
        form = self._form
        form.check()
        if (form.bands, form.frames) != (resolution, resolution):
            raise ValueError(f"spectrograms of {form.bands} bands and {form.frames} frames are not arrays of "
                             f"{resolution} x {resolution}")

    def as_pictures(self, values: Tensor) -> Tensor:
        return super().as_pictures(values.flip(2))

    def save(self, path: Path, values: Tensor) -> None:
        super().save(path, values)
        decibels = self.from_network(values[None])[0, 0].cpu().numpy()
        audio.write_wav(path.with_suffix(".wav"), audio.listen(decibels, self._form), self._form.sample_rate)

    @property
    def _form(self) -> LogMel:
        assert self.log_mel, "it is a sound"
        return self.log_mel


@dataclass(frozen=True, kw_only=True)
class SoundOptions(Normalisation, Packing):
    """How spectrograms are made of sound files. What is None follows from the first file's sample rate."""

    resolution: int = option(text="bands and frames", choices=RESOLUTIONS, number=int, metavar="PIXELS")
    hop: int | None = option(None, "from one frame to the next (default: the power of two nearest to 16 ms)",
                             span=Range(1, MAX_WINDOW), number=int, metavar="SAMPLES")
    window: int | None = option(None, "of each frame (default: 2, 4 or 8 hops, the shortest that tells the bands apart)",
                                span=Range(2, MAX_WINDOW), number=int, metavar="SAMPLES")
    low_hz: float = option(0.0, "where the lowest band begins", span=Range(0, 1e9), number=float, metavar="HZ")
    high_hz: float | None = option(None, "where the highest one ends (default: half the sample rate)",
                                   span=Range(above=0, most=1e9), number=float, metavar="HZ")
    floor_db: float = option(-80.0, "what is quieter, compared with a full-scale sine, becomes this", span=Range(-1000, 0),
                             number=float, metavar="DB")
    dtype: str = option("float16", "to store; float16 is exact to 0.03 dB", choices=("float16", "float32"))
    encoding: str = option("npy", "npz: compressed", choices=ENCODINGS)
    sample_rate: int | None = None   # Hz, of the first file; files of another one are refused
    channels = 1
    noun = "sound files"
    endings = (".wav", ".wave")

    @property
    def raw_bytes(self) -> int:
        return self.resolution**2 * np.dtype(self.dtype).itemsize

    @property
    def log_mel(self) -> LogMel:
        """Of completed options."""
        given: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(LogMel) if hasattr(self, one.name)}
        return LogMel(bands=self.resolution, frames=self.resolution, **given)

    def completed(self, files: Files) -> SoundOptions:
        """With the sample rate and what follows from it. Raises InputError also where no spectrograms can be made so."""
        *_, (rate, _) = first_readable(files, self.noun, partial(audio.read_wav, most=1))
        rate = self.sample_rate or rate
        hop = self.hop or 2 ** round(math.log2(rate * _HOP_SECONDS))
        options = replace(self, sample_rate=rate, hop=hop, high_hz=rate / 2 if self.high_hz is None else self.high_hz)
        failure = ""
        for window in (self.window,) if self.window else (hop * hops for hops in _WINDOW_HOPS):
            options = replace(options, window=window)
            try:
                options.log_mel.check()
                options.log_mel.check_bands()
                return options
            except ValueError as error:
                failure = str(error)
        raise InputError(f"no spectrograms can be made so: {failure}")

    def sample(self, data: bytes) -> Sample:
        """The spectrogram of a sound file. Raises ValueError with the reason when it cannot be had."""
        form = self.log_mel
        rate, samples = audio.read_wav(data, form.samples)
        if rate != form.sample_rate:
            raise ValueError(f"a sample rate of {rate} Hz instead of {form.sample_rate}: resample it")
        values = audio.log_mel(samples, form).astype(self.dtype)[None]
        return Sample(encode_array(values, self.encoding), values=Values.of(values))

    def kind(self, values: Values | None) -> Kind:
        assert values, "there is a sample"
        key = PACKED_KEY if self.encoding == "npz" else None
        return checked(Sound(self.dtype, *self.of(values), key, self.log_mel), self.resolution, 1)

    def libraries(self) -> dict[str, str]:
        return {"numpy": np.__version__}
