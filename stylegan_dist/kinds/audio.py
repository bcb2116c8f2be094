"""Sound as log-mel spectrograms, and back.

A spectrogram is made so that it is a square array: `frames` Hann windows, `hop` samples apart and centred in
their hops, of a clip of frames x hop samples; magnitudes of its short-time Fourier transform, averaged by
`bands` triangular filters on the mel scale (Slaney 1998, Auditory Toolbox, technical report 1998-010), in
decibels of a full-scale sine, cut off at a floor.

The way back: filters are undone by least squares, and the missing phases found by the iteration of Griffin
and Lim (1984, "Signal estimation from modified short-time Fourier transform") with the momentum of
Perraudin, Balazs and Sondergaard (2013, "A fast Griffin-Lim algorithm").
"""

from __future__ import annotations

import io
import os
import wave
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from stylegan_dist import randomness
from stylegan_dist.errors import InputError

MAX_WINDOW = 1 << 17         # samples, 0.7 s at 192 kHz; the filters have as many columns as half of it
MAX_RATE = 1_000_000_000     # Hz
ITERATIONS, MOMENTUM = 100, 0.99
_MAX_CONDITION = 100
_UNKNOWN_SIZE = 0x7FFFF000   # bytes; programs that write into a pipe claim as much or more
_MOST_FLOAT = 16.0           # of full scale; of whole numbers that were written as floating-point ones it is thousands
_MOST_VALUES = 1 << 25       # of all channels of a file, 256 MiB; compressed silence is short
_LINEAR_HZ, _LINEAR_MELS = 1000.0, 15.0      # the mel scale is linear up to 1 kHz, at 66.7 Hz a mel,
_LOG_STEP = np.log(6.4) / 27                 # and then logarithmic, 27 mels for a factor of 6.4


@dataclass(frozen=True)
class Form:
    """How the frames of spectrograms are cut. Stored in the index, so that the inverse knows."""

    sample_rate: int     # Hz
    hop: int             # samples from one window to the next
    window: int          # samples
    bands: int           # H; the lowest comes first
    frames: int          # W

    @property
    def samples(self) -> int:
        """Length of a clip."""
        return self.frames * self.hop

    def check(self) -> None:
        """Raise ValueError saying which value is impossible."""
        if min(self.sample_rate, self.hop, self.bands, self.frames) < 1:
            raise ValueError("sample rate, hop, bands and frames must be at least 1")
        if self.window > MAX_WINDOW or self.sample_rate > MAX_RATE:
            raise ValueError(f"a window of {self.window} samples at {self.sample_rate} Hz: at most {MAX_WINDOW} at {MAX_RATE}")
        if self.window < 2 * self.hop:
            raise ValueError(f"a window of {self.window} samples with a hop of {self.hop} loses sound between windows: the "
                             "window must be at least twice the hop, and four times is usual")


@dataclass(frozen=True)
class LogMel(Form):
    """Log-mel spectrograms."""

    low_hz: float        # where the lowest band begins
    high_hz: float       # where the highest one ends
    floor_db: float      # what is quieter becomes this

    def check(self) -> None:
        super().check()
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(f"bands from {self.low_hz:g} to {self.high_hz:g} Hz: they must rise, and end at "
                             f"{self.sample_rate / 2:g} Hz, half the sample rate, at most")
        check_floor(self.floor_db)

    def check_bands(self) -> None:
        """Raise ValueError when the way back would blow up, because the window does not tell all bands apart.

        In practice the condition number of the filters is below 10, or as good as infinite.
        """
        if np.linalg.cond(mel_filters(self)) > _MAX_CONDITION:
            raise ValueError(f"{self.bands} bands from {self.low_hz:g} to {self.high_hz:g} Hz are narrower than a window of "
                             f"{self.window} samples can tell apart: use a longer window, or a smaller resolution")


def check_floor(floor_db: float) -> None:
    """Raise ValueError where it is none."""
    if not np.isfinite(floor_db) or floor_db >= 0:
        raise ValueError(f"a floor of {floor_db:g} dB must be below 0, a full-scale sine")


def read_sound(data: bytes, most: int) -> tuple[int, np.ndarray]:
    """Sample rate in Hz, and the first `most` samples, or fewer where there are many channels: float64 [N], channels averaged.

    Args:
        data: a sound file of a format that libsndfile reads: WAV, FLAC, Ogg, MP3, AIFF. Full scale is 1. Floating-point
            numbers may exceed it.

    Raises:
        ValueError: with the reason, when it is none.
    """
    soundfile = libsndfile()
    claimed = int.from_bytes(data[4:8], "little") + 8
    if data[:4] == b"RIFF" and len(data) + 1 < claimed < _UNKNOWN_SIZE:  # the library would read what there is
        raise ValueError(f"a sound file that is cut off: {len(data)} bytes of {claimed}")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, wanted = file.samplerate, min(file.frames, most, _MOST_VALUES // file.channels)
            values = file.read(wanted, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise ValueError(f"not a sound file that can be read ({reason})") from None
    if len(values) < max(wanted, 1):
        raise ValueError("a sound file that is cut off" if wanted else "a sound file without samples")
    if not (loudest := np.abs(values).max()) <= _MOST_FLOAT:  # also where it is no number
        raise ValueError(f"a sound file of floating-point numbers up to {loudest:g}, where full scale is 1")
    return rate, values.mean(axis=1)


def libsndfile() -> ModuleType:
    """The package soundfile, which loads libsndfile. Raises InputError where there is no such library for this machine."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise InputError(f"sounds are read by libsndfile, which cannot be loaded ({error}): install it with the system's "
                         "package manager (libsndfile1, or libsndfile), and the package soundfile with pip") from None
    return soundfile


def write_wav(path: str | os.PathLike, samples: np.ndarray, rate: int) -> None:
    """Write samples in [-1, 1], which is enforced, as mono PCM of 16 bits."""
    levels = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2")
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(levels.tobytes())


def log_mel(samples: np.ndarray, form: LogMel) -> np.ndarray:
    """The spectrogram of a clip: decibels, float64 [bands, frames], lowest band first.

    Args:
        samples: [N]; what is beyond the clip is cut off, what is missing is silence.
    """
    magnitudes = np.abs(stft(clip_of(samples, form), form))
    mel = [weights @ magnitudes[first:first + len(weights)] for first, weights in _triangles(form)]
    return 20 * np.log10(np.maximum(mel, 10 ** (form.floor_db / 20)))


def clip_of(samples: np.ndarray, form: Form) -> np.ndarray:
    """The first samples [frames * hop], with silence behind them where there are fewer."""
    clip = np.zeros(form.samples)
    count = min(len(samples), form.samples)
    clip[:count] = samples[:count]
    return clip


def listen(decibels: np.ndarray, form: LogMel, iterations: int = ITERATIONS) -> np.ndarray:
    """A sound with about this spectrogram: float64 [frames * hop].

    Args:
        decibels: [bands, frames], as of `log_mel`. What is not above the floor is silence.
    """
    decibels = np.asarray(decibels, np.float64)
    mel = np.where(decibels > form.floor_db, 10 ** (np.minimum(decibels, 0) / 20), 0.0)
    return griffin_lim(np.maximum(_inverse_filters(form) @ mel, 0), form, iterations)


def griffin_lim(magnitudes: np.ndarray, form: Form, iterations: int = ITERATIONS,
                phases: np.ndarray | None = None) -> np.ndarray:
    """A signal with about these magnitudes of its short-time Fourier transform: float64 [frames * hop].

    Args:
        magnitudes: [window / 2 + 1, frames], as of `stft`.
        phases: to begin with, of the same shape, in radians. None: random ones, always the same.
    """
    estimate = magnitudes * np.exp(1j * (random_phases(form) if phases is None else phases))
    previous: np.ndarray | float = 0.0
    for _ in range(iterations):
        consistent = stft(inverse_stft(_with_magnitudes(estimate, magnitudes), form), form)
        estimate = consistent + MOMENTUM * (consistent - previous)
        previous = consistent
    return inverse_stft(_with_magnitudes(estimate, magnitudes), form)


def random_phases(form: Form) -> np.ndarray:
    """Radians [window / 2 + 1, frames], always the same."""
    draws = randomness.uniform(0, "audio.phase", torch.arange(form.frames), form.window // 2 + 1)
    return 2 * np.pi * draws.numpy().T.astype(np.float64)


def stft(clip: np.ndarray, form: Form) -> np.ndarray:
    """Short-time Fourier transform, complex [window / 2 + 1, frames]; a full-scale sine in a bin's middle has 1 there.

    Args:
        clip: [frames * hop]; silence surrounds it.
    """
    window, left = _window(form.window), _left(form)
    padded = np.pad(clip, (left, form.window - form.hop - left))
    frames = np.lib.stride_tricks.sliding_window_view(padded, form.window)[::form.hop]
    return np.fft.rfft(frames * window).T / (window.sum() / 2)


def inverse_stft(spectrum: np.ndarray, form: Form) -> np.ndarray:
    """The signal whose transform is nearest to `spectrum` in the sense of least squares (Griffin and Lim, equation 6)."""
    window, left = _window(form.window), _left(form)
    frames = np.fft.irfft(spectrum.T * (window.sum() / 2), form.window) * window
    signal, weight = _overlap_add(frames, form.hop), _overlap_add(np.tile(window**2, (form.frames, 1)), form.hop)
    clip = slice(left, left + form.samples)
    return signal[clip] / weight[clip]


def _overlap_add(frames: np.ndarray, hop: int) -> np.ndarray:
    """The sum of frames [frames, window] that begin `hop` samples apart; whole hops, so the end may be too long."""
    count, window = frames.shape
    pieces = -(-window // hop)
    total = np.zeros((count + pieces - 1, hop))
    padded = np.pad(frames, ((0, 0), (0, pieces * hop - window))).reshape(count, pieces, hop)
    for piece in range(pieces):
        total[piece:piece + count] += padded[:, piece]
    return total.ravel()


def _with_magnitudes(spectrum: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    return magnitudes * spectrum / np.maximum(np.abs(spectrum), 1e-12)


def _left(form: Form) -> int:
    """Samples of silence before the clip, so that each window is centred in its hop."""
    return (form.window - form.hop) // 2


@lru_cache(maxsize=4)
def _window(length: int) -> np.ndarray:
    """Hann, periodic."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@lru_cache(maxsize=4)
def mel_filters(form: LogMel) -> np.ndarray:
    """Triangles that are evenly spaced in mels and overlap by half: float64 [bands, window / 2 + 1], rows sum to one."""
    edges = _hertz(np.linspace(_mels(form.low_hz), _mels(form.high_hz), form.bands + 2))
    bins = np.fft.rfftfreq(form.window, 1 / form.sample_rate)
    lower, centre, upper = (edges[i:i + form.bands, None] for i in range(3))
    filters = np.maximum(0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    return filters / np.maximum(filters.sum(axis=1, keepdims=True), 1e-12)


@lru_cache(maxsize=4)
def _triangles(form: LogMel) -> list[tuple[int, np.ndarray]]:
    """The filters without their zeros, each with its first bin: a whole product would be 50 times as much, and threaded."""
    places = [np.flatnonzero(row) for row in mel_filters(form)]
    return [(place[0], row[place[0]:place[-1] + 1]) for place, row in zip(places, mel_filters(form), strict=True)]


@lru_cache(maxsize=4)
def _inverse_filters(form: LogMel) -> np.ndarray:
    """From bands to the bins of the transform, least squares of least norm: float64 [window / 2 + 1, bands]."""
    return np.linalg.pinv(mel_filters(form))


def _mels(hertz: float) -> float:
    if hertz < _LINEAR_HZ:
        return hertz * _LINEAR_MELS / _LINEAR_HZ
    return float(_LINEAR_MELS + np.log(hertz / _LINEAR_HZ) / _LOG_STEP)


def _hertz(mels: np.ndarray) -> np.ndarray:
    linear = mels * _LINEAR_HZ / _LINEAR_MELS
    return np.where(mels < _LINEAR_MELS, linear, _LINEAR_HZ * np.exp(_LOG_STEP * (mels - _LINEAR_MELS)))
