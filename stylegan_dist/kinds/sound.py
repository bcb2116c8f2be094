"""Sounds, as spectrograms [1 or 2, bands, frames]: arrays that can be heard.

Three forms: log-mel (`audio`), linear, and linear with phases (`spectrum`).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stylegan_dist.errors import InputError
from stylegan_dist.kinds import audio
from stylegan_dist.kinds.array import NORMALISATIONS, Array, Normalisation, checked
from stylegan_dist.kinds.audio import MAX_WINDOW, LogMel, libsndfile
from stylegan_dist.kinds.base import RESOLUTIONS, Files, Kind, Packing, Sample, Waveform, first_readable, option
from stylegan_dist.kinds.npy import ENCODINGS, PACKED_KEY, encode_array
from stylegan_dist.kinds.spectrum import Spectrum, analyse, synthesise
from stylegan_dist.kinds.values import Values
from stylegan_dist.ranges import Range

FORMS = ("log-mel", "linear", "phase")
_HOP_SECONDS = 0.016       # by the automatic rule, to the next power of two
_WINDOW_HOPS = (2, 4, 8)   # by the automatic rule, the first that tells all bands apart
_LEAST_SCALE = 1.0         # decibels, of a band: one that is nearly always silent is not magnified
_TRIM_SECONDS = 0.01       # of the pieces whose levels are compared when sounds are trimmed


@dataclass(frozen=True)
class Sound(Array):
    """Arrays with `log_mel` or `spectrum`. Low tones are at the bottom of the pictures, which show decibels."""

    noun = "spectrograms"

    def check(self, resolution: int, channels: int) -> None:
        super().check(resolution, channels)
        form = self.form
        form.check()
        if (form.bands, form.frames) != (resolution, resolution):
            raise ValueError(f"spectrograms of {form.bands} bands and {form.frames} frames are not arrays of "
                             f"{resolution} x {resolution}")
        if self.spectrum and channels != self.spectrum.channels:
            raise ValueError(f"spectrograms {'with' if self.spectrum.phase else 'without'} phases have "
                             f"{self.spectrum.channels} channels, not {channels}")

    def _counts(self, resolution: int, channels: int) -> tuple[int, ...]:
        return *super()._counts(resolution, channels), resolution * channels

    def as_pictures(self, values: Tensor) -> Tensor:
        """Decibels of the magnitudes; those of bands that are normalised each from the floor to full scale."""
        if len(self.offset) > values.shape[1] or self.spectrum:
            offset, scale = self._constants(values)
            decibels = (values.float() * scale + offset)[:, :1]
            values = 1 - 2 * decibels / self.form.floor_db
        return super().as_pictures(values.flip(2))

    def save(self, path: Path, values: Tensor) -> None:
        super().save(path, values)
        clip = self.as_sound(values)
        audio.write_wav(path.with_suffix(".wav"), clip.samples, clip.rate)

    def as_sound(self, values: Tensor) -> Waveform:
        made = self.from_network(values[None])[0].cpu().numpy()
        form = self.form
        samples = audio.listen(made[0], form) if isinstance(form, LogMel) else synthesise(made, form)
        return Waveform(form.sample_rate, samples)

    @property
    def form(self) -> LogMel | Spectrum:
        form = self.log_mel or self.spectrum
        assert form, "it is a sound"
        return form


@dataclass(frozen=True, kw_only=True)
class SoundOptions(Normalisation, Packing):
    """How spectrograms are made of sound files. What is None follows from the form and the first file's sample rate."""

    normalise: str | None = option(  # type: ignore[assignment]  # completed options have one
        None, "as of arrays; bands: each band has mean 0 and standard deviation 1/2, phases stay as they are (default: "
        "range for log-mel, bands for the others)", choices=(*NORMALISATIONS, "bands"))
    resolution: int = option(text="bands and frames", choices=RESOLUTIONS, number=int, metavar="PIXELS")
    form: str = option("log-mel", "log-mel: decibels of bands on the mel scale; linear: of the lowest bins of the transform; "
                       "phase: these, and the instantaneous frequency as a second channel", choices=FORMS)
    trim: float | None = option(None, "cut off both ends as far as they are quieter than this, compared with a full-scale "
                                "sine (default: keep them)", span=Range(-1000, 0), number=float, metavar="DB")
    hop: int | None = option(None, "from one frame to the next (default: the power of two nearest to 16 ms; of the linear "
                             "forms a quarter of the window, half of it below 128 pixels)",
                             span=Range(1, MAX_WINDOW), number=int, metavar="SAMPLES")
    window: int | None = option(None, "of each frame (default: 2, 4 or 8 hops, the shortest that tells the bands apart; of the "
                                "linear forms twice the resolution, so that they reach up to half the sample rate)",
                                span=Range(2, MAX_WINDOW), number=int, metavar="SAMPLES")
    low_hz: float = option(0.0, "where the lowest band begins; of log-mel", span=Range(0, 1e9), number=float, metavar="HZ")
    high_hz: float | None = option(None, "where the highest one ends; of log-mel (default: half the sample rate)",
                                   span=Range(above=0, most=1e9), number=float, metavar="HZ")
    floor_db: float = option(-80.0, "what is quieter, compared with a full-scale sine, becomes this", span=Range(-1000, 0),
                             number=float, metavar="DB")
    dtype: str = option("float16", "to store; float16 is exact to 0.03 dB", choices=("float16", "float32"))
    encoding: str = option("npy", "npz: compressed", choices=ENCODINGS)
    sample_rate: int | None = None   # Hz, of the first file; files of another one are refused
    noun = "sound files"
    endings = (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")

    @property
    def channels(self) -> int:  # type: ignore[override]
        return 2 if self.form == "phase" else 1

    def decisive(self) -> dict[str, Any]:
        """Without what older versions did not have, where it changes nothing: their sets are known again."""
        return {name: value for name, value in super().decisive().items()
                if (name, value) not in (("form", "log-mel"), ("trim", None))}

    @property
    def raw_bytes(self) -> int:
        return self.channels * self.resolution**2 * np.dtype(self.dtype).itemsize

    @property
    def spectrogram(self) -> LogMel | Spectrum:
        """Of completed options."""
        given: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(LogMel) if hasattr(self, one.name)}
        given |= {"bands": self.resolution, "frames": self.resolution}
        if self.form == "log-mel":
            return LogMel(**given)
        del given["low_hz"], given["high_hz"]
        return Spectrum(**given, phase=self.form == "phase")

    def completed(self, files: Files) -> SoundOptions:
        """With the sample rate and what follows from it. Raises InputError also where no spectrograms can be made so."""
        *_, (rate, _) = first_readable(files, self.noun, partial(audio.read_sound, most=1))
        options = replace(self, sample_rate=self.sample_rate or rate,
                          normalise=self.normalise or ("range" if self.form == "log-mel" else "bands"))
        return options._completed_log_mel() if self.form == "log-mel" else options._completed_linear()

    def _completed_log_mel(self) -> SoundOptions:
        assert self.sample_rate
        hop = self.hop or 2 ** round(math.log2(self.sample_rate * _HOP_SECONDS))
        options = replace(self, hop=hop, high_hz=self.sample_rate / 2 if self.high_hz is None else self.high_hz)
        failure = ""
        for window in (self.window,) if self.window else (hop * hops for hops in _WINDOW_HOPS):
            options = replace(options, window=window)
            try:
                form = options.spectrogram
                form.check()
                assert isinstance(form, LogMel)
                form.check_bands()
                return options
            except ValueError as error:
                failure = str(error)
        raise InputError(f"no spectrograms can be made so: {failure}")

    def _completed_linear(self) -> SoundOptions:
        if self.low_hz or self.high_hz is not None:
            raise InputError(f"--low-hz and --high-hz have no meaning for --form {self.form}: its bands are the lowest bins of "
                             "the transform; a longer --window makes them narrower, so that they end lower")
        window = self.window or 2 * self.resolution
        options = replace(self, window=window, hop=self.hop or max(1, window // (4 if self.resolution >= 128 else 2)))
        try:
            options.spectrogram.check()
        except ValueError as error:
            raise InputError(f"no spectrograms can be made so: {error}") from None
        return options

    def sample(self, data: bytes) -> Sample:
        """The spectrogram of a sound file. Raises ValueError with the reason when it cannot be had."""
        form = self.spectrogram
        rate, samples = audio.read_sound(data, form.samples + 1 if self.trim is None else sys.maxsize)
        if rate != form.sample_rate:
            raise ValueError(f"a sample rate of {rate} Hz instead of {form.sample_rate}, that of the first file: resample it")
        if self.trim is not None:
            samples = trimmed(samples, rate, self.trim)
        spectrogram = audio.log_mel(samples, form)[None] if isinstance(form, LogMel) else analyse(samples, form)
        values = spectrogram.astype(self.dtype)
        rows = values.reshape(-1, 1, self.resolution) if self.normalise == "bands" else values
        return Sample(encode_array(values, self.encoding), values=Values.of(rows), cut=len(samples) > form.samples)

    def of(self, values: Values) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.normalise != "bands" or self.offset is not None:
            return super().of(values)
        offset, scale = values.normalisation("std")
        count = self.resolution  # of the bands of the first channel, which has decibels
        phases = len(offset) - count
        return (*offset[:count], *[0.0] * phases), (*(max(one, _LEAST_SCALE) for one in scale[:count]), *[1.0] * phases)

    def kind(self, values: Values | None) -> Kind:
        assert values, "there is a sample"
        key = PACKED_KEY if self.encoding == "npz" else None
        form = self.spectrogram
        log_mel, spectrum = (form, None) if isinstance(form, LogMel) else (None, form)
        return checked(Sound(self.dtype, *self.of(values), key, log_mel, spectrum), self.resolution, self.channels)

    def libraries(self) -> dict[str, str]:
        return {"numpy": np.__version__, "libsndfile": libsndfile().__libsndfile_version__}


def trimmed(samples: np.ndarray, rate: int, level_db: float) -> np.ndarray:
    """Samples [N] without their ends as far as these are quieter than a level, in decibels of a full-scale sine.

    Levels are those of pieces of 10 ms. One piece more is kept at both ends.

    Raises:
        ValueError: nothing is as loud.
    """
    piece = max(1, round(rate * _TRIM_SECONDS))
    count = -(-len(samples) // piece)
    pieces = np.pad(samples, (0, count * piece - len(samples))).reshape(count, piece)
    loud = np.flatnonzero(2 * (pieces**2).mean(1) >= 10 ** (level_db / 10))
    if not len(loud):
        raise ValueError(f"nothing in it is as loud as {level_db:g} dB: give another --trim, or leave the file out")
    return samples[max(0, loud[0] - 1) * piece:(loud[-1] + 2) * piece]
