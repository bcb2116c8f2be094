"""Log-mel spectrograms and the way back to sound, on signals whose spectrum is known."""

from __future__ import annotations

import io
import struct
import sys
import tarfile
import wave
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from batches import joined, stream_of

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.errors import InputError
from stylegan_dist.kinds import audio
from stylegan_dist.kinds.audio import LogMel, griffin_lim, listen, log_mel, mel_filters, read_sound, stft, write_wav
from stylegan_dist.kinds.sound import SoundOptions
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.verify import verify

DIGITS = LogMel(sample_rate=8000, hop=128, window=256, bands=64, frames=64, low_hz=0, high_hz=4000, floor_db=-80)
SMALL = LogMel(sample_rate=8000, hop=128, window=256, bands=16, frames=16, low_hz=0, high_hz=4000, floor_db=-80)


def spectral_convergence(samples: np.ndarray, magnitudes: np.ndarray, form: LogMel) -> float:
    """|| |stft(samples)| - magnitudes || / || magnitudes ||, Frobenius norms: 0 is perfect."""
    return float(np.linalg.norm(np.abs(stft(samples, form)) - magnitudes) / np.linalg.norm(magnitudes))


def tone(hertz: float, count: int = DIGITS.samples, level: float = 0.5, rate: int = 8000) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(count) / rate)


def wav(values: np.ndarray, width: int = 2, rate: int = 8000) -> bytes:
    """PCM of values [N] or [N, channels] in [-1, 1)."""
    values = values.reshape(len(values), -1) if len(values) else np.zeros((0, 1))
    levels = np.rint(values * 2.0 ** (8 * width - 1)).astype(np.int64)
    if width == 1:
        raw = (levels + 128).astype(np.uint8).tobytes()
    else:
        raw = levels.astype("<i8").reshape(*levels.shape, 1).view(np.uint8)[..., :width].tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((values.shape[1], width, rate, 0, "NONE", ""))
        out.writeframes(raw)
    return file.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_pcm_of_every_width(width, channels):
    values = np.stack([tone(440, 300), tone(1000, 300, 0.2)], 1)[:, :channels]
    rate, read = read_sound(wav(values, width), 200)
    assert rate == 8000
    assert read.shape == (200,)
    assert np.abs(read - values[:200].mean(1)).max() <= 2.0 ** -(8 * width - 1)


def floats(values, width: int = 4) -> bytes:
    """A WAV file of floating-point numbers in one channel."""
    part = struct.pack("<HHIIHH", 3, 1, 8000, 8000 * width, width, 8 * width)
    return riff(part, np.asarray(values).astype(f"<f{width}").tobytes())


def riff(form: bytes, data: bytes, size: int | None = None) -> bytes:
    """A WAV file with a part that nobody needs, of an odd size."""
    parts = [(b"LIST", b"odd", 3), (b"fmt ", form, len(form)), (b"data", data, len(data) if size is None else size)]
    body = b"".join(name + struct.pack("<I", claimed) + part + b"\0" * (len(part) % 2) for name, part, claimed in parts)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def test_what_recorders_and_pipes_write():
    """24 bits in the extensible form, as ffmpeg and recorders write them; floats; a size that was not known."""
    values = tone(440, 300)
    pcm = wav(values, 3)[44:]
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    extensible = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 8000, 24000, 3, 24, 22, 24, 4) + guid
    for data, exact in ((riff(extensible, pcm), 2.0**-23), (riff(extensible, pcm, 0xFFFFFFFF), 2.0**-23),
                        (floats(values), 1e-7), (floats(2 * values, 8), 0)):
        rate, read = read_sound(data, 1000)
        assert (rate, len(read)) == (8000, 300)
        assert np.abs(read - values * (2 if exact == 0 else 1)).max() <= exact


@pytest.mark.parametrize(("form", "subtype", "exact"), [
    ("FLAC", "PCM_16", 2.0**-15), ("AIFF", "PCM_24", 2.0**-23), ("OGG", "VORBIS", 0.1), ("MP3", "MPEG_LAYER_III", 0.1),
    ("WAV", "ULAW", 0.02)])
def test_other_formats(form, subtype, exact):
    values = np.stack([tone(440, 3000), tone(440, 3000, 0.2)], 1)
    file = io.BytesIO()
    soundfile.write(file, values, 16000, format=form, subtype=subtype)
    rate, read = read_sound(file.getvalue(), 1000)
    assert (rate, len(read)) == (16000, 1000)
    assert np.abs(read - values[:1000].mean(1)).max() <= exact
    if form == "FLAC":
        with pytest.raises(ValueError, match="lost sync"):
            read_sound(file.getvalue()[:-200], 3000)


@pytest.mark.parametrize(("data", "message"), [
    (b"", "not a sound file"), (b"words" * 99, "not a sound file"),
    (wav(tone(440, 100)).replace(b"fmt \x10\0\0\0", b"fmt \x10\0\0\x80"), "not a sound file"),
    (wav(tone(440, 100))[:-20], "cut off"),
    (wav(np.zeros(0)), "without samples"),
    (wav(tone(440, 100)).replace(b"fmt \x10\0\0\0\1", b"fmt \x10\0\0\0\x63"), "not a sound file"),
    (floats([0.5, float("nan")]), "up to nan"), (floats([3000, 2]), "up to 3000, where full scale is 1"),
])
def test_other_files(data, message):
    with pytest.raises(ValueError, match=message):
        read_sound(data, 200)


@pytest.mark.parametrize("hertz", [250, 1000, 2600])
def test_a_tone_is_in_the_band_that_the_scale_says(hertz):
    """Slaney's scale: 3 mels each 200 Hz up to 1 kHz, then 27 mels for a factor of 6.4."""
    decibels = log_mel(tone(hertz), DIGITS)
    assert decibels.shape == (64, 64)

    def mels(f: float) -> float:
        return 3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)

    expected = mels(hertz) / mels(4000) * 65 - 1
    assert (np.abs(decibels[:, 4:60].argmax(0) - expected) <= 1).all()


def test_levels_and_the_floor():
    assert np.abs(stft(tone(1000, level=1.0), DIGITS))[32, 5:-5] == pytest.approx(1, abs=1e-6), "1 kHz is bin 32"
    assert (log_mel(np.zeros(10), DIGITS) == -80).all()
    loud, quiet = log_mel(tone(1000), DIGITS), log_mel(tone(1000, level=0.05), DIGITS)
    assert (loud - quiet)[loud > -50] == pytest.approx(20, abs=1e-6)
    short = log_mel(tone(1000, 4096), DIGITS)
    assert (short[:, 34:] == -80).all()
    assert np.array_equal(short[:, :30], loud[:, :30]), "what is missing is silence behind it"
    assert np.array_equal(log_mel(tone(1000, 9999), DIGITS), loud), "what is too much is cut off"


def test_filters():
    filters = mel_filters(DIGITS)
    assert filters.shape == (64, 129)
    assert filters.sum(1) == pytest.approx(1)
    assert (np.diff(filters.argmax(1)) >= 0).all(), "lowest band first"
    assert np.linalg.matrix_rank(filters) == 64


@pytest.mark.parametrize("hertz", [300, 1234, 2900])
def test_the_inverse_has_the_frequency_and_the_level_of_a_tone(hertz):
    samples = tone(hertz)
    back = listen(log_mel(samples, DIGITS), DIGITS)
    assert back.shape == samples.shape
    spectrum = np.abs(np.fft.rfft(back[1024:-1024] * np.hanning(len(back) - 2048)))
    found = spectrum.argmax() * 8000 / (len(back) - 2048)
    assert found == pytest.approx(hertz, abs=10 + 0.01 * hertz), "bands are 36 Hz wide, and wider from 1 kHz"
    assert np.sqrt((back**2).mean()) == pytest.approx(np.sqrt((samples**2).mean()), rel=0.3), "within 3 dB"


def chirp() -> np.ndarray:
    """From 200 to 3000 Hz, then silence."""
    seconds = np.arange(6000) / 8000
    return 0.3 * np.sin(2 * np.pi * (200 * seconds + 2800 / 1.5 * seconds**2))


def test_phases_are_found():
    """Spectral convergence from exact magnitudes, and from the bands alone."""
    clip = np.pad(chirp(), (0, DIGITS.samples - 6000))
    magnitudes = np.abs(stft(clip, DIGITS))
    found = griffin_lim(magnitudes, DIGITS)
    assert spectral_convergence(found, magnitudes, DIGITS) < 0.05
    assert spectral_convergence(griffin_lim(magnitudes, DIGITS, iterations=0), magnitudes, DIGITS) > 0.2, "by iteration"
    assert np.array_equal(found, griffin_lim(magnitudes, DIGITS))
    decibels = log_mel(clip, DIGITS)
    back = listen(decibels, DIGITS)
    assert spectral_convergence(back, magnitudes, DIGITS) < 0.25
    assert np.abs(log_mel(back, DIGITS) - decibels)[decibels > -40].mean() < 1.0
    assert np.abs(back[6300:]).max() < 1e-3, "silence stays silent"


def test_the_transform_and_its_inverse():
    noise = np.random.default_rng(0).normal(0, 0.1, DIGITS.samples)
    for form in (DIGITS, replace(DIGITS, window=512), replace(DIGITS, window=300)):
        assert audio.inverse_stft(stft(noise, form), form) == pytest.approx(noise, abs=1e-12)


@pytest.mark.parametrize(("change", "message"), [
    ({"window": 128}, "at least twice the hop"), ({"high_hz": 5000}, "4000 Hz, half the sample rate"),
    ({"low_hz": 4000}, "must rise"), ({"floor_db": 1}, "below 0"), ({"hop": 0}, "at least 1"),
    ({"bands": 256}, "longer window"), ({"hop": 96, "window": 192}, "longer window"),
])
def test_impossible_spectrograms(change, message):
    def check(form: LogMel) -> None:
        form.check()
        form.check_bands()

    check(DIGITS)
    with pytest.raises(ValueError, match=message):
        check(replace(DIGITS, **change))


# Packing

OPTIONS = PackOptions(SoundOptions(resolution=16), labels="names", samples_per_shard=5, workers=2)


def sounds() -> dict[str, bytes]:
    return {f"rec/{digit}_someone_{take}.wav": wav(tone(300 + 700 * digit, 1500 + 200 * take))
            for digit in range(4) for take in range(3)}


@pytest.fixture
def tape(tmp_path):
    with tarfile.open(tmp_path / "sounds.tar", "w") as file:
        for name, data in sounds().items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return tmp_path / "sounds.tar"


def test_from_a_tar_of_sounds_to_batches(tape, tmp_path):
    index = pack(tape, tmp_path / "set", OPTIONS)
    assert (index.resolution, index.channels, index.kind.dtype, index.classes) == (16, 1, "float16", ["0", "1", "2", "3"])
    assert index.kind.log_mel == SMALL
    assert index == load_index(tmp_path / "set")
    assert verify(tmp_path / "set", workers=1) == []
    stream = stream_of(index, seed=0, lanes=4, block=4, batch=12)
    batch = joined([next(stream)])
    stream.close()
    made = {log_mel(read_sound(data, SMALL.samples)[1], SMALL).astype(np.float16).tobytes(): int(name[4])
            for name, data in sounds().items()}
    assert [made[image.numpy().tobytes()] for image in batch["sample"]] == batch["label"].tolist()
    seen = index.kind.to_network(batch["sample"])
    assert (float(seen.min()), float(seen.max())) == (-1, 1)
    shown = index.kind.as_pictures(seen)
    assert np.array_equal(shown[:, 0], seen[:, 0].flip(1)), "low tones at the bottom"


def test_a_folder_gives_the_same_bytes(tape, tmp_path):
    for name, data in sounds().items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    pack(tape, tmp_path / "set", OPTIONS)
    pack(tmp_path / "in", tmp_path / "other", replace(OPTIONS, workers=1))
    for path in (tmp_path / "set").glob("shard-*"):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_another_rate_is_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0_a.wav").write_bytes(wav(tone(440)))
    (tmp_path / "in" / "0_b.wav").write_bytes(wav(tone(440), rate=16000))
    index = pack(tmp_path / "in", tmp_path / "out", OPTIONS)
    (skipped,) = index.skipped
    assert skipped["name"] == "0_b.wav"
    assert "a sample rate of 16000 Hz instead of 8000" in skipped["reason"]


def test_from_the_command_line(tape, tmp_path, capsys):
    out = str(tmp_path / "set")
    assert main(["pack", str(tape), out, "--resolution", "16"]) == 2
    assert "--log-mel makes spectrograms" in capsys.readouterr().err
    assert main(["pack", str(tape), out, "--resolution", "16", "--log-mel", "--window", "128"]) == 2
    assert "at least twice the hop" in capsys.readouterr().err
    assert main(["pack", str(tape), out, "--resolution", "16", "--log-mel", "--hop", "100", "--high-hz", "3000",
                 "--floor-db", "-60"]) == 0
    assert load_index(out).kind.log_mel == replace(SMALL, hop=100, window=200, high_hz=3000.0, floor_db=-60.0)
    assert load_index(out).classes is None


def test_names_without_classes(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("x1.wav", "x2.wav"):
        (tmp_path / "in" / name).write_bytes(wav(tone(440)))
    with pytest.raises(InputError, match="a class of its own in each file"):
        pack(tmp_path / "in", tmp_path / "out", OPTIONS)


def test_what_is_written_can_be_read(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([0.0, 0.5, 2.0, -2.0]), 8000)
    assert read_sound((tmp_path / "a.wav").read_bytes(), 9)[1] == pytest.approx([0, 0.5, 1, -1], abs=1e-4)


def test_without_libsndfile(tape, tmp_path, monkeypatch, capsys):
    """The package lies in places where its library does not exist, and then fails when it is imported."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "soundfile.py").write_text("raise OSError('sndfile library not found')")
    monkeypatch.syspath_prepend(tmp_path / "without")
    monkeypatch.delitem(sys.modules, "soundfile")
    assert main(["pack", str(tape), str(tmp_path / "set"), "--resolution", "32", "--log-mel"]) == 2
    assert "libsndfile, which cannot be loaded (sndfile library not found): install it" in capsys.readouterr().err
