import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_dist.monitor.images import ABOUT, FRAME_MS, GAP, image_grid, save_clip, save_grid, to_uint8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_to_uint8_is_the_inverse_of_normalising(dtype):
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8((levels.double() / 127.5 - 1).to(dtype)), levels)


def test_to_uint8_rounds_to_the_nearest_level_and_clamps():
    levels = torch.tensor([0.0, 10.4, 10.6, 254.6, 400.0, -3.0])
    assert to_uint8(levels / 127.5 - 1).tolist() == [0, 10, 11, 255, 255, 0]
    odd = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert to_uint8(odd).tolist() == [0, 255, 0]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_grid_places_every_image(channels, mode):
    images = torch.randint(0, 256, (5, channels, 64, 80), dtype=torch.uint8)
    grid = image_grid(images, columns=3)
    assert grid.mode == mode
    assert grid.size == (3 * 80 + 2 * GAP, 2 * 64 + GAP)
    pixels = np.array(grid).reshape(grid.height, grid.width, channels)
    covered = np.zeros(pixels.shape[:2], bool)
    for index, image in enumerate(images):
        y, x = index // 3 * (64 + GAP), index % 3 * (80 + GAP)
        assert np.array_equal(pixels[y:y + 64, x:x + 80], image.permute(1, 2, 0).numpy())
        covered[y:y + 64, x:x + 80] = True
    assert not pixels[~covered].any()


@pytest.mark.parametrize(("size", "shown"), [(1, 64), (16, 64), (32, 64), (48, 96), (64, 64), (256, 256)])
def test_small_images_are_enlarged_by_whole_pixels(size, shown):
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    grid = np.array(image_grid(image, columns=4))
    assert grid.shape == (shown, shown, 3)
    factor = shown // size
    assert np.array_equal(grid[::factor, ::factor], image[0].permute(1, 2, 0).numpy())
    assert np.array_equal(grid[factor - 1::factor, factor - 1::factor], image[0].permute(1, 2, 0).numpy())


def test_float_images_are_taken_as_minus_one_to_one():
    levels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    floats = (levels.float() / 127.5 - 1).requires_grad_(False)
    assert np.array_equal(np.array(image_grid(floats, 2)), np.array(image_grid(levels, 2)))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 8, 8), (1, 2, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        image_grid(torch.zeros(shape), 1)


def test_no_columns_are_refused():
    with pytest.raises(ValueError, match="columns"):
        image_grid(torch.zeros(1, 3, 8, 8), 0)


def test_save_grid_is_a_png_of_the_grid_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "000001.png"
    path.write_bytes(b"an older picture")
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    save_grid(path, images, 2)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.array(image), np.array(image_grid(images, 2)))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "000001.png"
    path.write_bytes(b"an older picture")

    def fail(self, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_grid(path, torch.zeros(1, 3, 64, 64), 1)
    assert path.read_bytes() == b"an older picture"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_captions_stand_above_their_images_and_change_none(channels):
    images = torch.randint(0, 200, (4, channels, 64, 64), dtype=torch.uint8)
    plain, grid = (np.array(image_grid(images, 2, captions)).reshape(-1, 130, channels)
                   for captions in ((), ("psi 0", "", "", "")))
    band = len(grid) - len(plain)
    assert 10 <= band <= 20
    assert np.array_equal(grid[band:], plain)
    assert grid[:band, :64, 0].max() > 200
    assert not grid[:band, 64:, :3].any()
    everywhere = np.array(image_grid(images, 2, ["a", "", "\udc80 \n" + "long" * 99, ""])).reshape(-1, 130, channels)
    assert len(everywhere) == len(plain) + 2 * band
    with pytest.raises(ValueError, match="captions"):
        image_grid(images, 2, ["a"])


def test_a_picture_says_what_it_shows(tmp_path):
    save_grid(tmp_path / "a.png", torch.zeros(1, 3, 64, 64), 1, about="At 7 kimg.")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info[ABOUT] == "At 7 kimg."


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_clip_is_an_endless_gif_of_its_grids(tmp_path, channels):
    ramp = torch.linspace(0, 255, 64).to(torch.uint8)
    frames = torch.stack([ramp.roll(i).expand(2, channels, 64, 64) for i in range(30)])
    if channels == 4:
        frames[:, :, 3] = 255
    save_clip(tmp_path / "a.gif", frames, 2)
    with Image.open(tmp_path / "a.gif") as clip:
        assert (clip.format, clip.n_frames, clip.info["loop"], clip.info["duration"]) == ("GIF", 30, 0, FRAME_MS)
        for i in (0, 13, 29):
            clip.seek(i)
            shown = np.array(clip.convert("RGB")).astype(int)[:, :64]
            expected = np.array(image_grid(frames[i], 2).convert("RGB")).astype(int)[:, :64]
            assert abs(shown - expected).max() <= (0 if channels == 1 else 12)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
