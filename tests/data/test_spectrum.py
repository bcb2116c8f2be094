"""Linear spectrograms and phases, on signals whose transform is known in closed form, and sets of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from test_audio import spectral_convergence, tone, wav

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.data.reader import ShardReader
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import audio
from stylegan_dist.kinds.audio import griffin_lim, inverse_stft, stft
from stylegan_dist.kinds.sound import Sound, SoundOptions, trimmed
from stylegan_dist.kinds.spectrum import Spectrum, analyse, integrated_phases, synthesise
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.verify import verify

LINEAR = Spectrum(sample_rate=8000, hop=64, window=256, bands=128, frames=128, floor_db=-80, phase=False)
PHASE = replace(LINEAR, phase=True)
SMALL = Spectrum(sample_rate=8000, hop=32, window=128, bands=64, frames=64, floor_db=-80, phase=True)


def glide(count: int) -> np.ndarray:
    """From 300 Hz upwards, with silence at both ends."""
    seconds = np.arange(count) / 8000
    loud = np.sin(np.pi * np.clip((seconds / seconds[-1] - 0.1) / 0.8, 0, 1)) ** 2
    return 0.3 * loud * np.sin(2 * np.pi * (300 * seconds + 600 * seconds**2))


@pytest.mark.parametrize("form", [PHASE, SMALL])
@pytest.mark.parametrize("hertz", [437.5, 1000.0, 2345.6])
def test_a_tone_has_the_frequency_that_it_has(form, hertz):
    """By definition: the phase of a tone of f Hz advances by 2 pi f hop / rate, that of a band's middle by 2 pi k hop / window.

    A Hann window's transform is zero beyond two bins but for leakage, so the bands of the main lobe are compared.
    """
    values = analyse(tone(hertz, form.samples), form)
    band = round(hertz * form.window / form.sample_rate)
    for k in (band - 1, band, band + 1):
        turns = 2 * form.hop * (hertz / form.sample_rate - k / form.window)
        assert values[1, k, 4:-4] == pytest.approx(turns, abs=2e-3), "within what the tone of negative frequency leaks"
    middle = 20 * np.log10(0.5)
    if hertz * form.window % form.sample_rate == 0:
        assert values[0, band, 4:-4] == pytest.approx(middle, abs=1e-3), "0.5 of a full-scale sine"
    assert (np.abs(values[1]) <= 1).all()


@pytest.mark.parametrize("form", [PHASE, SMALL])
def test_phases_make_the_inverse_exact(form):
    """Up to what is below the floor and in the one bin that is left out, the Nyquist frequency's, where there is nothing."""
    clip = glide(form.samples)
    assert synthesise(analyse(clip, form), form) == pytest.approx(clip, abs=2e-4)
    stored = analyse(clip, form).astype(np.float16)
    assert np.linalg.norm(synthesise(stored, form) - clip) / np.linalg.norm(clip) < 0.02
    lower = replace(form, floor_db=-300.0)
    assert synthesise(analyse(clip, lower), lower) == pytest.approx(clip, abs=1e-5)


def test_silence_has_no_phase_and_stays_silent():
    values = analyse(np.zeros(10), PHASE)
    assert values.shape == (2, 128, 128)
    assert (values[0] == -80).all()
    assert (values[1] == 0).all()
    for form in (PHASE, LINEAR):
        assert (synthesise(analyse(np.zeros(10), form), form) == 0).all()


def test_integrated_phases_are_those_of_the_transform():
    """Of a glide, up to one constant: the phases of loud bins that the mathematics of Gaussian windows predicts."""
    clip = glide(LINEAR.samples)
    spectrum = stft(clip, LINEAR)
    magnitudes = np.abs(spectrum)
    phases = integrated_phases(magnitudes, LINEAR)
    loud = magnitudes > 0.2 * magnitudes.max()
    difference = np.exp(1j * (phases - np.angle(spectrum)))[loud]
    assert np.abs((difference * np.conj(difference.mean() / abs(difference.mean()))).real).mean() > 0.8
    found = {"integrated": inverse_stft(magnitudes * np.exp(1j * phases), LINEAR), "random": griffin_lim(magnitudes, LINEAR, 0),
             "iterated": griffin_lim(magnitudes, LINEAR, 20), "both": griffin_lim(magnitudes, LINEAR, 20, phases)}
    error = {name: spectral_convergence(one, magnitudes, LINEAR) for name, one in found.items()}  # type: ignore[arg-type]
    assert error["both"] < 0.7 * error["iterated"] < error["random"]
    assert error["integrated"] < 0.3 * error["random"]


def test_the_linear_form_is_heard():
    clip = glide(LINEAR.samples)
    values = analyse(clip, LINEAR)
    back = synthesise(values.astype(np.float16), LINEAR)
    assert spectral_convergence(back, np.abs(stft(clip, LINEAR)), LINEAR) < 0.05  # type: ignore[arg-type]
    assert np.array_equal(back, synthesise(values.astype(np.float16), LINEAR)), "always the same"


@pytest.mark.parametrize(("change", "message"), [
    ({"window": 200}, "an even window of 256 samples or more"), ({"window": 257}, "even window"),
    ({"hop": 200}, "twice the hop"), ({"floor_db": 0.0}, "below 0"), ({"frames": 64}, "64 frames are not"),
])
def test_impossible_forms(change, message):
    def kind(form: Spectrum) -> Sound:
        return Sound("float16", (0.0,), (1.0,), None, None, form)

    kind(LINEAR).check(128, 1)
    with pytest.raises(ValueError, match=message):
        kind(replace(LINEAR, **change)).check(128, 1)
    with pytest.raises(ValueError, match="with phases have 2 channels, not 1"):
        kind(PHASE).check(128, 1)
    with pytest.raises(ValueError, match="64 offsets"):
        Sound("float16", (0.0,) * 64, (1.0,) * 64, None, None, LINEAR).check(128, 1)


def test_ends_are_trimmed():
    quiet, loud = tone(1000, 800, 1e-4), tone(1000, 1600, 0.5)
    cut = trimmed(np.concatenate([quiet, loud, quiet]), 8000, -40)
    assert np.array_equal(cut, np.concatenate([quiet[-80:], loud, quiet[:80]])), "a piece of 10 ms is kept on either side"
    assert np.array_equal(trimmed(loud, 8000, -40), loud)
    with pytest.raises(ValueError, match="nothing in it is as loud as -40 dB"):
        trimmed(quiet, 8000, -40)


# Sets

def write_sounds(folder) -> None:
    folder.mkdir()
    for number in range(6):
        loud = tone(300 + 500 * (number % 3), 1600 + 100 * number)
        (folder / f"{number % 3}_someone_{number}.wav").write_bytes(wav(np.concatenate([np.zeros(700), loud])))


@pytest.mark.parametrize(("form", "channels"), [("log-mel", 1), ("linear", 1), ("phase", 2)])
def test_bands_are_normalised_each(tmp_path, form, channels):
    """Against means and deviations of all stored values, computed at once."""
    write_sounds(tmp_path / "in")
    options = PackOptions(SoundOptions(resolution=32, form=form, normalise="bands", hop=96 if form == "log-mel" else None),
                          labels="names", samples_per_shard=4, workers=1)
    index = pack(tmp_path / "in", tmp_path / "set", options)
    assert verify(tmp_path / "set", workers=1) == []
    assert load_index(tmp_path / "set") == index
    reader, decode = ShardReader(index, None), index.kind.decoder(strict=True)
    stored = np.empty((6, 32, 32, channels), np.float16)
    for number in range(6):
        decode(reader.read(number // 4, number % 4)[0], stored[number])
    reader.close()
    decibels = stored[..., 0].astype(np.float64)
    mean, scale = decibels.mean((0, 2)), np.maximum(2 * decibels.std((0, 2)), 1)
    assert index.kind.offset[:32] == pytest.approx(mean.tolist())
    assert index.kind.scale[:32] == pytest.approx(scale.tolist())
    samples = torch.from_numpy(stored).permute(0, 3, 1, 2)
    seen = index.kind.to_network(samples)
    assert seen[:, 0].numpy() == pytest.approx((decibels - mean[:, None]) / scale[:, None], abs=1e-5)
    if channels == 2:
        assert torch.equal(seen[:, 1], samples[:, 1].float()), "phases stay as they are"
    assert torch.allclose(index.kind.from_network(seen).float(), samples.float(), atol=0.05)
    shown = index.kind.as_pictures(seen)
    assert shown.shape == (6, 1, 32, 32)
    assert shown[:, 0].flip(1).numpy() == pytest.approx(1 + decibels / 40, abs=1e-4), "from the floor to full scale"


def test_from_the_command_line(tmp_path, capsys):
    write_sounds(tmp_path / "in")
    (tmp_path / "in" / "0_stereo.wav").write_bytes(wav(np.stack([tone(440, 900), np.zeros(900)], 1)))
    (tmp_path / "in" / "1_long.wav").write_bytes(wav(tone(440, 4200)))  # of 4096 samples
    (tmp_path / "in" / "1_full.wav").write_bytes(wav(tone(440, 4096)))
    source = str(tmp_path / "in")
    assert main(["pack", source, str(tmp_path / "a"), "--resolution", "64", "--form", "phase", "--trim", "-40"]) == 0
    index = load_index(tmp_path / "a")
    assert index.kind.spectrum == replace(SMALL, hop=64)
    assert (index.num_samples, index.channels, len(index.kind.offset)) == (9, 2, 128)
    said = capsys.readouterr().out
    assert "... (128 numbers)" in said
    assert "\nsounds that were longer than a clip and have been cut off: 1\n" in said
    for wrong, message in ((["--window", "100"], "an even window of 128 samples or more"),
                           (["--high-hz", "2000"], "lowest bins"), (["--hop", "100"], "at least twice the hop")):
        assert main(["pack", source, str(tmp_path / "b"), "--resolution", "64", "--form", "linear", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["pack", source, str(tmp_path / "b"), "--resolution", "64", "--log-mel", "--form", "linear"]) == 0
    assert load_index(tmp_path / "b").kind.spectrum is not None, "--log-mel only says that these are sounds"


def test_silent_files_are_left_out(tmp_path):
    write_sounds(tmp_path / "in")
    (tmp_path / "in" / "0_silent.wav").write_bytes(wav(np.zeros(900)))
    options = PackOptions(SoundOptions(resolution=32, form="linear", trim=-60), workers=1)
    index = pack(tmp_path / "in", tmp_path / "set", options)
    assert [one["name"] for one in index.skipped] == ["0_silent.wav"]
    with pytest.raises(InputError, match="lowest bins"):
        pack(tmp_path / "in", tmp_path / "other", PackOptions(SoundOptions(resolution=32, form="linear", low_hz=100)))


def test_log_mel_sets_are_what_they_were(tmp_path):
    """The options, the facts and the identity of a set have nothing new in them, and its bytes are those of the definition."""
    write_sounds(tmp_path / "in")
    options = PackOptions(SoundOptions(resolution=16), labels="names", workers=1)
    index = pack(tmp_path / "in", tmp_path / "set", options)
    array = json.loads((tmp_path / "set" / "index.json").read_text())["array"]
    assert list(array) == ["dtype", "offset", "scale", "key", "log_mel"]
    assert list(array["log_mel"]) == ["sample_rate", "hop", "window", "bands", "frames", "low_hz", "high_hz", "floor_db"]
    assert sorted(index.packed_with["options"]) == sorted([
        "normalise", "offset", "scale", "resolution", "hop", "window", "low_hz", "high_hz", "floor_db", "dtype", "encoding",
        "sample_rate", "labels", "shuffle", "seed", "samples_per_shard"])
    assert index.packed_with["options"]["normalise"] == "range"
    text = json.dumps([shard.record() for shard in index.shards], sort_keys=True) + json.dumps(
        {"dtype": "float16", "offset": list(index.kind.offset), "scale": list(index.kind.scale), "key": None,
         "log_mel": asdict(index.kind.log_mel)}, sort_keys=True)
    assert index.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    clip = index.kind.as_sound(torch.zeros(1, 16, 16))
    decibels = index.kind.from_network(torch.zeros(1, 1, 16, 16))[0, 0].numpy()
    assert np.array_equal(clip.samples, audio.listen(decibels, index.kind.log_mel))
