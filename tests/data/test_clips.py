"""Clips: cut from films, from animations and from folders of frames; what is refused; the values that training sees."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import stream_of
from clips import FRAMES, SIDE, circling, make_clips, save_gif
from PIL import Image

from stylegan_dist.cli import main
from stylegan_dist.data.index import load_index
from stylegan_dist.kinds.clip import Clip
from stylegan_dist.kinds.film import Facts, FilmForm
from stylegan_dist.kinds.npy import read_array
from stylegan_dist.making import clips
from stylegan_dist.making.verify import verify


def run(source: Path, out: Path, *options: str) -> int:
    return main(["pack", str(source), str(out), "--video", "--workers", "1", "--resolution", str(SIDE), "--channels", "1",
                 *options])


def clips_of(shards: Path) -> list[np.ndarray]:
    """Of a set that was not mixed: uint8 [frames * C, H, W] each."""
    index = load_index(shards)
    found = []
    for shard in index.shards:
        data, table = Path(shards, shard.name).read_bytes(), np.load(Path(shards, shard.offsets))
        found += [read_array(data[offset:offset + size], None, 1 << 20) for offset, size, _ in table.tolist()]
    return found


def test_clips_of_animations(tmp_path):
    for number in range(3):
        save_gif(tmp_path / "films" / f"{number}.gif", circling(number, 13))
    assert run(tmp_path / "films", tmp_path / "set", "--frames", "4", "--stride", "3", "--no-shuffle") == 0
    index = load_index(tmp_path / "set")
    assert index.kind == Clip("uint8", (127.5,), (127.5,), film=FilmForm(4, 1, 12.5))
    assert (index.channels, index.resolution, index.num_samples) == (4, SIDE, 12)
    expected = [circling(number, 13)[first:first + 4] for number in range(3) for first in (0, 3, 6, 9)]
    assert all(np.array_equal(one, other) for one, other in zip(clips_of(tmp_path / "set"), expected, strict=True))
    assert verify(tmp_path / "set", workers=1) == []


def test_clips_of_folders_of_frames(tmp_path):
    frames = circling(0, 12)
    for number, frame in enumerate(frames):  # frame2 comes before frame10
        path = tmp_path / "films" / "dog" / "walk" / f"frame{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path)
    save_gif(tmp_path / "films" / "cat" / "jump.gif", circling(1, 12), 40)
    assert run(tmp_path / "films", tmp_path / "set", "--frames", "5", "--labels", "folders", "--no-shuffle") == 0
    index = load_index(tmp_path / "set")
    assert (index.classes, index.class_counts) == (["cat", "dog"], [2, 2])
    assert index.kind.form == FilmForm(5, 1, 25.0)
    expected = [*(circling(1, 12)[i:i + 5] for i in (0, 5)), *(frames[i:i + 5] for i in (0, 5))]
    assert all(np.array_equal(one, other) for one, other in zip(clips_of(tmp_path / "set"), expected, strict=True))


def test_pictures_of_different_sizes_are_no_video(tmp_path, capsys):
    """Such as a folder of photos: each would be cropped in its own way."""
    save_gif(tmp_path / "films" / "a.gif", circling(1, 8), 40)
    (tmp_path / "films" / "photos").mkdir()
    for number, width in enumerate((16, 16, 20, 16)):
        Image.new("RGB", (width, 16)).save(tmp_path / "films" / "photos" / f"{number}.png")
    assert run(tmp_path / "films", tmp_path / "set", "--frames", "4") == 0
    assert load_index(tmp_path / "set").num_samples == 2
    assert "frame 2.png: 20 x 16 pixels, and 0.png has 16 x 16: frames of a video have one size" in capsys.readouterr().out


def test_other_rates_lose_frames(tmp_path):
    save_gif(tmp_path / "films" / "a.gif", circling(0, 20), 40)
    save_gif(tmp_path / "films" / "b.gif", circling(1, 10), 80)
    assert run(tmp_path / "films", tmp_path / "set", "--frames", "10", "--fps", "12.5", "--no-shuffle") == 0
    one, other = clips_of(tmp_path / "set")
    assert np.array_equal(one, circling(0, 20)[::2])
    assert np.array_equal(other, circling(1, 10))
    assert Facts(10, 10.0).places_at(20.0).tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8, 8, 8, 9]


def test_clips_of_a_film(tmp_path, caplog):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames = np.repeat(np.repeat(circling(0, 18), 4, 1), 4, 2)
    wide = np.pad(frames, ((0, 0), (0, 0), (32, 32)))[..., None].repeat(3, 3)
    (tmp_path / "films").mkdir()
    film = tmp_path / "films" / "one.mp4"
    command = [ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x64", "-r", "10", "-i",
               "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "10", str(film)]
    subprocess.run(command, input=wide.tobytes(), check=True, timeout=120)
    assert run(tmp_path / "films", tmp_path / "set", "--frames", "8", "--no-shuffle", "--filter", "box") == 0
    index = load_index(tmp_path / "set")
    assert (index.num_samples, index.kind.form.fps) == (2, 10.0)
    for clip, first in zip(clips_of(tmp_path / "set"), (0, 8), strict=True):  # H.264 loses something
        assert np.abs(clip.astype(float) - circling(0, 18)[first:first + 8]).mean() < 6
    turned = tmp_path / "turned" / "one.mp4"
    turned.parent.mkdir()
    told = subprocess.run([ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", str(film), "-c", "copy",
                           str(turned)], check=False, timeout=120)
    if not told.returncode:  # as telephones write them; older versions cannot
        assert run(turned.parent, tmp_path / "upright", "--frames", "8", "--no-shuffle", "--filter", "box") == 0
        for one, other in zip(clips_of(tmp_path / "upright"), clips_of(tmp_path / "set"), strict=True):
            assert np.abs(one.astype(float) - np.rot90(other, 1, (1, 2))).mean() < 2
        assert "frame size" not in caplog.text
    film.write_bytes(film.read_bytes()[:300])
    assert run(tmp_path / "films", tmp_path / "other", "--frames", "8") == 2


def test_what_gives_no_clip_is_left_out_and_named(tmp_path, capsys):
    for number in range(3):
        save_gif(tmp_path / "films" / f"{number}.gif", circling(number, 8))
    save_gif(tmp_path / "films" / "short.gif", circling(4, 3))
    (tmp_path / "films" / "broken.gif").write_bytes(b"GIF89a and nothing else")
    assert run(tmp_path / "films", tmp_path / "set", "--frames", "8", "--max-skipped", "2") == 0
    index = load_index(tmp_path / "set")
    assert index.num_samples == 3
    told = json.loads((tmp_path / "set/index.json").read_text())["skipped"]
    assert [one["name"] for one in told] == ["broken.gif#000000", "short.gif#000000"]
    assert told[1]["reason"] == "3 frames at 12.5 per second, and a clip has 8"
    assert "5 clips of 8" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "told"), [
    (("--frames", "30"), "no video has the 30 frames of a clip at 12.5 per second; the longest has 8: give fewer --frames"),
    (("--frames", "64", "--channels", "3"), "64 frames of 3 channels are 192 numbers a pixel, more than 128: give --frames 42"),
    (("--frames", "1"), "--frames must be"),
    (("--fps", "0"), "--fps must be"),
    (("--normalise", "std"), "--normalise has no meaning for videos, only for arrays, sounds, latents: leave"),
    (("--flips", "stored"), "--flips has no meaning for videos, only for latents (--encode ENCODER): leave it out"),
])
def test_bad_options_are_refused(tmp_path, capsys, options, told):
    save_gif(tmp_path / "films" / "0.gif", circling(0, 8))
    assert run(tmp_path / "films", tmp_path / "set", *options) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_what_is_no_video_is_refused(tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(b"this is no film at all" * 100)
    assert run(tmp_path / "films", tmp_path / "set") == 2
    assert "none of the videos can be read: 'a.mp4' (ffmpeg cannot decode it" in capsys.readouterr().err
    # A playlist would have ffmpeg read what else it names.
    (tmp_path / "films" / "a.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/other.ts\n")
    assert run(tmp_path / "films", tmp_path / "set") == 2
    assert main(["pack", str(tmp_path / "films"), str(tmp_path / "set"), "--resolution", "16"]) == 2
    assert "holds videos: --video cuts clips from them" in capsys.readouterr().err


def test_training_sees_clips_in_their_range(tmp_path):
    shards = make_clips(tmp_path)
    index = load_index(shards)
    assert index.kind.layout(index.channels) == f"{FRAMES} frames of 1 channel, 12.5 per second, looping"
    stream = stream_of(index, seed=3, lanes=4, block=4, batch=24)
    try:
        samples = next(stream)["sample"]
    finally:
        stream.close()
    values = index.kind.to_network(samples)
    assert values.shape == (24, FRAMES, SIDE, SIDE)
    assert torch.equal(index.kind.from_network(values), samples)
    assert (values.min(), values.max()) == (-1, samples.max() / 127.5 - 1)
    film = index.kind.as_film(values)
    assert (film.frames.shape, film.fps) == ((24, FRAMES, 1, SIDE, SIDE), 12.5)
    assert torch.equal(index.kind.as_pictures(values), film.frames[:, FRAMES // 2])
    index.kind.save(tmp_path / "one", values[0])
    with Image.open(tmp_path / "one.webp") as picture:
        assert (picture.n_frames, picture.size) == (FRAMES, (SIDE, SIDE))
        picture.seek(2)
        shown = np.asarray(picture.convert("L")).astype(float)
    assert np.abs(shown - samples[0, 2].numpy()).mean() < 8


def test_sets_without_clips_keep_their_identity():
    from stylegan_dist.kinds.array import Array

    assert "film" not in Array("uint8", (0.0,), (1.0,)).facts()["array"]


def test_films_that_are_all_too_long(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clips, "MOST_FILM_BYTES", 1000)
    save_gif(tmp_path / "films" / "a.gif", circling(0, 13))
    assert run(tmp_path / "films", tmp_path / "set", "--frames", "4") == 2
    assert "none of the videos can be used: 'a.gif' (13 frames are more than" in capsys.readouterr().err
