"""How much of a sound survives the way into a spectrogram and back?

    python benchmarks/audio.py recordings.tar                 # a folder, zip or tar of WAV files
    python benchmarks/audio.py recordings.tar --form phase --resolution 128
    python benchmarks/audio.py held-out --features features/digits

Spectral convergence (0 is perfect: the norm of the error of the magnitudes over the norm of the magnitudes) of
  phases:  log-mel and linear: from the exact magnitudes of the transform; what is lost is the phase alone
  bands:   from the spectrogram that a set stores, compared in the magnitudes of the transform
  heard:   log-mel: the same, compared in the bands that the spectrogram keeps
the mean difference in decibels between the spectrograms of the result and of the original, where that is 20 dB above the
floor or more; the error of the waveform over its norm; the time of one inverse; and files a second on one core into
spectrograms.

With --features, the folder of a network that `stylegan-dist train-features` has made of log-mel spectrograms: the share of
files that it reads as their class, before and after. The class is what the name of a file begins with, or says as "class7".
"""

from __future__ import annotations

import argparse
import re
import time
from functools import partial

import numpy as np
import torch

from stylegan_dist.features.registry import open_features
from stylegan_dist.kinds import Sound, audio, spectrum
from stylegan_dist.kinds.audio import LogMel
from stylegan_dist.kinds.npy import read_array
from stylegan_dist.kinds.sound import FORMS, SoundOptions
from stylegan_dist.making.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--form", choices=FORMS, default="log-mel")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--hop", type=int)
    parser.add_argument("--window", type=int)
    parser.add_argument("--files", type=int, default=100, help="evenly out of all (default: %(default)s)")
    parser.add_argument("--features", help="folder of train-features")
    args = parser.parse_args()
    source = open_source(args.source, "none", SoundOptions)
    options = SoundOptions(resolution=args.resolution, hop=args.hop, window=args.window, form=args.form).completed(
        (item.name, partial(source.read, item.name)) for item in source.items)
    form = options.spectrogram
    print(form, f"{form.samples / form.sample_rate:.3f} s")
    items = source.items[::max(1, len(source.items) // args.files)]
    contents = [source.read(item.name) for item in items]

    options.sample(contents[0])
    began = time.process_time()
    for data in contents:
        options.sample(data)
    rate = len(contents) / (time.process_time() - began)

    columns: dict[str, list[float]] = {}
    seconds, originals, results = 0.0, [], []
    for data in contents:
        samples = audio.read_sound(data, form.samples)[1]
        clip = audio.clip_of(samples, form)
        magnitudes = np.abs(audio.stft(clip, form))
        stored = read_array(options.sample(data).data, None, 1 << 30).astype(np.float64)
        began = time.process_time()
        back = audio.listen(stored[0], form) if isinstance(form, LogMel) else spectrum.synthesise(stored, form)
        seconds += time.process_time() - began
        row = {"bands": spectral_convergence(back, magnitudes, form),
               "waveform": float(np.linalg.norm(back - clip) / np.linalg.norm(clip))}
        if isinstance(form, LogMel):
            row["phases"] = spectral_convergence(audio.griffin_lim(magnitudes, form), magnitudes, form)
            filters = audio.mel_filters(form)
            bands = filters @ magnitudes
            row["heard"] = float(np.linalg.norm(filters @ np.abs(audio.stft(back, form)) - bands) / np.linalg.norm(bands))
            again = audio.log_mel(back, form)
        else:
            if not form.phase:
                phases = spectrum.integrated_phases(magnitudes, form)
                row["phases"] = spectral_convergence(audio.griffin_lim(magnitudes, form, spectrum.ITERATIONS, phases),
                                                     magnitudes, form)
            again = spectrum.analyse(back, form)[0]
        loud = stored[0] > form.floor_db + 20
        row["decibels"] = float(np.abs(again - stored[0])[loud].mean()) if loud.any() else 0.0
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
        originals.append(samples)
        results.append(back)
    for name, values in columns.items():
        print(f"{name:<9} mean {np.mean(values):.3f}   median {np.median(values):.3f}   worst {np.max(values):.3f}")
    print(f"{len(contents)} files; {1000 * seconds / len(contents):.0f} ms of CPU time an inverse; {rate:.0f} spectrograms/s")
    if args.features:
        labels = [class_of(item.name) for item in items]
        print(f"read as their class: {share_read(args.features, originals, labels):.1%} of the originals, "
              f"{share_read(args.features, results, labels):.1%} after the way there and back")


def spectral_convergence(samples: np.ndarray, magnitudes: np.ndarray, form: audio.Form) -> float:
    """|| |stft(samples)| - magnitudes || / || magnitudes ||, Frobenius norms: 0 is perfect."""
    return float(np.linalg.norm(np.abs(audio.stft(samples, form)) - magnitudes) / np.linalg.norm(magnitudes))


def class_of(name: str) -> int:
    base = name.rpartition("/")[2]
    found = re.search(r"class(\d+)", base) or re.match(r"(\d+)", base)
    if not found:
        raise SystemExit(f"{name} has no class in its name")
    return int(found[1])


def share_read(features: str, sounds: list[np.ndarray], labels: list[int]) -> float:
    network = open_features(features, "cpu")
    kind = network.taught.kind if network.taught else None
    if not isinstance(kind, Sound) or kind.log_mel is None:
        raise SystemExit(f"{features} has not learnt log-mel spectrograms")
    values = [torch.from_numpy(audio.log_mel(one, kind.log_mel).astype(kind.dtype))[None] for one in sounds]
    return float((network.logits(torch.stack(values)).argmax(1) == torch.tensor(labels)).double().mean())


if __name__ == "__main__":
    main()
