"""How much of a sound survives the way into a log-mel spectrogram and back?

    python benchmarks/audio.py recordings.tar                 # a folder, zip or tar of WAV files
    python benchmarks/audio.py recordings.tar --resolution 128 --hop 64

Spectral convergence (0 is perfect: the norm of the error of the magnitudes over the norm of the magnitudes) of
  phases:  Griffin-Lim from the exact magnitudes of the transform; what is lost is the phase alone
  bands:   from the spectrogram that a set stores, compared in the magnitudes of the transform
  heard:   the same, compared in the bands that the spectrogram keeps
and the mean difference in decibels between the spectrograms of the result and of the original, where that is 20 dB
above the floor or more; the time of one inverse; and files a second on one core into spectrograms.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np

from stylegan_dist.kinds import audio
from stylegan_dist.kinds.npy import read_array
from stylegan_dist.kinds.sound import SoundOptions
from stylegan_dist.making.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--hop", type=int)
    parser.add_argument("--window", type=int)
    parser.add_argument("--files", type=int, default=100, help="evenly out of all (default: %(default)s)")
    args = parser.parse_args()
    source = open_source(args.source, "none", SoundOptions)
    options = SoundOptions(resolution=args.resolution, hop=args.hop, window=args.window).completed(
        (item.name, partial(source.read, item.name)) for item in source.items)
    form = options.spectrogram
    print(form, f"{form.samples / form.sample_rate:.3f} s")
    contents = [source.read(item.name) for item in source.items[::max(1, len(source.items) // args.files)]]

    options.sample(contents[0])
    began = time.process_time()
    for data in contents:
        options.sample(data)
    rate = len(contents) / (time.process_time() - began)

    rows, seconds = [], 0.0
    for data in contents:
        samples = audio.read_wav(data, form.samples)[1]
        clip = np.pad(samples, (0, form.samples - len(samples)))
        magnitudes = np.abs(audio.stft(clip, form))
        stored = read_array(options.sample(data).data, None, 1 << 30)[0].astype(np.float64)
        began = time.process_time()
        back = audio.listen(stored, form)
        seconds += time.process_time() - began
        filters = audio.mel_filters(form)
        bands = filters @ magnitudes
        heard = np.linalg.norm(filters @ np.abs(audio.stft(back, form)) - bands) / np.linalg.norm(bands)
        difference = np.abs(audio.log_mel(back, form) - stored)[stored > form.floor_db + 20]
        rows.append((
            spectral_convergence(audio.griffin_lim(magnitudes, form), magnitudes, form),
            spectral_convergence(back, magnitudes, form), heard, difference.mean() if len(difference) else 0.0,
        ))
    for name, column in zip(("phases", "bands", "heard", "decibels"), np.transpose(rows), strict=True):
        print(f"{name:<9} mean {column.mean():.3f}   median {np.median(column):.3f}   worst {column.max():.3f}")
    print(f"{len(rows)} files; {1000 * seconds / len(rows):.0f} ms of CPU time an inverse; {rate:.0f} spectrograms/s")


def spectral_convergence(samples: np.ndarray, magnitudes: np.ndarray, form: audio.LogMel) -> float:
    """|| |stft(samples)| - magnitudes || / || magnitudes ||, Frobenius norms: 0 is perfect."""
    return float(np.linalg.norm(np.abs(audio.stft(samples, form)) - magnitudes) / np.linalg.norm(magnitudes))


if __name__ == "__main__":
    main()
