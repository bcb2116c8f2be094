"""Sound as linear spectrograms, with or without phases, and back.

The bands are the lowest bins of the short-time Fourier transform that `audio.stft` computes. Two forms:

- magnitudes [1, bands, frames], in decibels of a full-scale sine, cut off at a floor. The way back finds phases by the
  integration of their gradient along the loudest bins (Prusa, Balazs and Sondergaard 2017, "A noniterative method for
  reconstruction of phase from STFT magnitude"), then by Griffin and Lim's iteration from these.
- magnitudes and phases [2, bands, frames]. The second channel is the instantaneous frequency (Engel et al. 2019,
  "GANSynth", section 2.3): the change of the phase from the frame before, in half turns. Here it is counted from the
  advance of the bin's own frequency, so that a tone in the middle of a bin has 0. The way back is a cumulative sum.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from stylegan_dist.kinds.audio import Form, check_floor, clip_of, griffin_lim, inverse_stft, random_phases, stft

ITERATIONS = 100          # of Griffin and Lim, after the phases are integrated
_TOLERANCE = 1e-5         # of the greatest magnitude: quieter bins get random phases
_HANN = 0.25645           # a Hann window of L samples is like a Gaussian exp(-pi t^2 / (0.25645 L^2)) (Prusa 2017, table 1)


@dataclass(frozen=True)
class Spectrum(Form):
    """Linear spectrograms. Stored in the index, so that the inverse knows."""

    floor_db: float      # what is quieter becomes this
    phase: bool          # whether a second channel has the instantaneous frequency

    @property
    def channels(self) -> int:
        return 1 + self.phase

    def check(self) -> None:
        super().check()
        if self.window % 2 or self.bands > self.window // 2:
            raise ValueError(f"a window of {self.window} samples has {self.window // 2} bands, not {self.bands}: use an even "
                             f"window of {2 * self.bands} samples or more, or a smaller resolution")
        check_floor(self.floor_db)


def analyse(samples: np.ndarray, form: Spectrum) -> np.ndarray:
    """The spectrogram of a clip: float64 [1 or 2, bands, frames], decibels and half turns from -1 to 1, lowest band first.

    Where the magnitude is at the floor, the phase goes on as that of a tone in the middle of the bin: 0.

    Args:
        samples: [N]; what is beyond the clip is cut off, what is missing is silence.
    """
    spectrum = stft(clip_of(samples, form), form)[:form.bands]
    decibels = 20 * np.log10(np.maximum(np.abs(spectrum), 10 ** (form.floor_db / 20)))
    if not form.phase:
        return decibels[None]
    phases, loud, advance = np.angle(spectrum), decibels > form.floor_db, _advance(form)
    turns, known = np.zeros_like(phases), np.zeros(form.bands)  # the phases that the inverse knows so far
    for frame in range(form.frames):
        known += advance
        step = phases[:, frame] - known
        turns[:, frame] = np.where(loud[:, frame], step / np.pi - 2 * np.round(step / (2 * np.pi)), 0)
        known += np.pi * turns[:, frame]
    return np.stack([decibels, turns])


def synthesise(values: np.ndarray, form: Spectrum, iterations: int = ITERATIONS) -> np.ndarray:
    """A sound with this spectrogram: float64 [frames * hop].

    Args:
        values: [1 or 2, bands, frames], as of `analyse`. What is not above the floor is silence.
        iterations: of Griffin and Lim, where phases are to be found.
    """
    values = np.asarray(values, np.float64)
    magnitudes = np.zeros((form.window // 2 + 1, form.frames))
    magnitudes[:form.bands] = np.where(values[0] > form.floor_db, 10 ** (np.minimum(values[0], 0) / 20), 0)
    if not form.phase:
        return griffin_lim(magnitudes, form, iterations, integrated_phases(magnitudes, form))
    phases = np.zeros_like(magnitudes)
    phases[:form.bands] = np.cumsum(np.pi * values[1] + _advance(form)[:, None], axis=1)
    return inverse_stft(magnitudes * np.exp(1j * phases), form)


def _advance(form: Form) -> np.ndarray:
    """Radians from one frame to the next of a tone in the middle of each band."""
    return 2 * np.pi * form.hop * np.arange(form.bands) / form.window


def integrated_phases(magnitudes: np.ndarray, form: Form) -> np.ndarray:
    """Phases for magnitudes [window / 2 + 1, frames] of a transform, radians.

    With a Gaussian window exp(-pi t^2 / g) and s the logarithm of the magnitude, the phase around the middle of the window
    changes by s_f / g + 2 pi f in time, and by -g s_t in frequency: the derivatives of the transform itself. The phase is
    summed up from the loudest bin on, always to the loudest neighbour of those that are known.
    """
    bins, frames = magnitudes.shape
    least = _TOLERANCE * magnitudes.max()
    phases = random_phases(form)
    if least == 0:
        return phases
    spread = _HANN * form.window**2
    logs = np.log(np.maximum(magnitudes, least))
    in_time = form.hop * (np.gradient(logs, axis=0) * form.window / spread
                          + 2 * np.pi * np.arange(bins)[:, None] / form.window)
    # Phases are of the beginning of the window, half a window before its middle: half a turn less for each bin.
    in_frequency = -spread / form.window * np.gradient(logs, axis=1) / form.hop - np.pi
    left = magnitudes > least
    down, across, loud = in_frequency.tolist(), in_time.tolist(), (-magnitudes).tolist()  # numbers, of which Python is fast
    found: dict[tuple[int, int], float] = {}
    waiting: list[tuple[float, int, int]] = []
    open_, starts = left.tolist(), np.argsort(-magnitudes, axis=None, kind="stable")
    for start in starts[:int(left.sum())].tolist():
        k, n = divmod(start, frames)
        if not open_[k][n]:
            continue
        open_[k][n], found[k, n] = False, 0.0
        heapq.heappush(waiting, (loud[k][n], k, n))
        while waiting:
            _, k, n = heapq.heappop(waiting)
            here = found[k, n]
            for row, column in ((k, n + 1), (k, n - 1), (k + 1, n), (k - 1, n)):
                if 0 <= row < bins and 0 <= column < frames and open_[row][column]:
                    slope = across if row == k else down
                    step = (slope[k][n] + slope[row][column]) / 2
                    found[row, column] = here + step if (row, column) > (k, n) else here - step
                    open_[row][column] = False
                    heapq.heappush(waiting, (loud[row][column], row, column))
    for (k, n), phase in found.items():
        phases[k, n] = phase
    return phases
