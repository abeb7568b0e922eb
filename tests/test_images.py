"""Pictures: quantisation, layout and files."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cifargan.errors import UserError
from cifargan.images import grid, labelled_sheet, save_gif, save_png, to_float, to_uint8, upscale

LEVELS = torch.arange(256, dtype=torch.uint8)


def random_images(n: int, *, size: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (n, 3, size, size), generator=generator, dtype=torch.uint8)


def test_every_level_survives_the_round_trip() -> None:
    assert to_float(LEVELS)[[0, 255]].tolist() == [-1.0, 1.0]
    assert torch.equal(to_uint8(to_float(LEVELS)), LEVELS)


@pytest.mark.parametrize("offset", [-0.49, 0.49])
def test_quantisation_goes_to_the_nearest_level_and_not_towards_zero(offset: float) -> None:
    x = (LEVELS.double() + offset) / 127.5 - 1
    assert torch.equal(to_uint8(x), LEVELS)


def test_quantisation_clamps() -> None:
    x = torch.tensor([-3.0, -1.001, -1.0, 0.999, 1.0, 1.01, 3.0, float("inf"), float("-inf")])
    assert to_uint8(x).tolist() == [0, 0, 0, 255, 255, 255, 255, 255, 0]
    with pytest.raises(TypeError, match="uint8"):
        to_uint8(LEVELS)
    with pytest.raises(TypeError, match="float32"):
        to_float(torch.zeros(1))


def test_grid_runs_row_by_row_on_white() -> None:
    images = random_images(5)
    sheet = grid(images, columns=3, padding=1)
    assert sheet.shape == (3, 2 * 5 + 1, 3 * 5 + 1)
    assert torch.equal(sheet[:, 1:5, 11:15], images[2])
    assert torch.equal(sheet[:, 6:10, 1:5], images[3])
    assert (sheet[:, 5, :] == 255).all()
    assert (sheet[:, 6:, 11:] == 255).all()


def test_upscale_repeats_pixels() -> None:
    large = upscale(torch.tensor([[[[1, 2], [3, 4]]]]), 2)
    assert large[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


@pytest.mark.parametrize("counts", [(3, 2), (1, 1)])
def test_labelled_sheet_has_a_row_for_each_class_with_its_name(counts: tuple[int, int]) -> None:
    cat, dog = random_images(counts[0], size=16), random_images(counts[1], size=16, seed=1)
    sheet = labelled_sheet({"cat": cat, "dog": dog}, padding=2, scale=2)
    left = sheet.shape[2] - max(counts) * 34  # where the names end
    assert sheet.shape[1] == 2 * 34 + 2
    for row, images in enumerate([cat, dog]):
        for column, image in enumerate(images):
            top, start = 2 + row * 34, left + column * 34
            assert torch.equal(sheet[:, top : top + 32, start : start + 32], upscale(image, 2))
        name = sheet[:, row * 35 : (row + 1) * 35, :left]
        assert (name < 100).sum() > 60  # dark strokes
        assert (name == 255).float().mean() > 0.6  # on white
    assert not torch.equal(sheet[:, :34, :left], sheet[:, 34:68, :left])
    assert (sheet[:, 36:, left + counts[1] * 34 :] == 255).all()


def test_labelled_sheet_has_room_for_its_names() -> None:
    assert labelled_sheet({"0": random_images(1), "1": random_images(1)}, padding=0).shape[1] == 2 * 16
    short, long = (labelled_sheet({name: random_images(1)}) for name in ("cat", "a remarkably long class name"))
    assert long.shape[2] > short.shape[2] + 60


def test_png_is_lossless_and_replaces_without_leftovers(tmp_path: Path) -> None:
    first, second = random_images(2, size=8)
    path = tmp_path / "new" / "folder" / "a.png"
    save_png(first, path)
    save_png(second, str(path))
    with Image.open(path) as picture:
        assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), second)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_gif_has_every_frame_in_order_and_the_duration(tmp_path: Path) -> None:
    frames = [torch.full((3, 8, 8), level, dtype=torch.uint8) for level in (0, 60, 120, 240)]
    save_gif(frames, tmp_path / "a.gif", milliseconds=70)
    with Image.open(tmp_path / "a.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 4
        assert animation.info["loop"] == 0
        for number, level in enumerate((0, 60, 120, 240)):
            animation.seek(number)
            assert animation.info["duration"] == 70
            assert animation.convert("RGB").getpixel((3, 3)) == (level, level, level)


def test_a_failed_write_leaves_the_old_file_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = random_images(2)
    path = tmp_path / "a.png"
    save_png(old, path)
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError) as caught:
        save_png(new, path)
    assert str(path) in str(caught.value)
    assert f": {os.strerror(errno.ENOSPC)}; " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_path_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.gif").mkdir()
    with pytest.raises(UserError, match=r"could not write .*file"):
        save_png(random_images(1)[0], tmp_path / "file" / "a.png")
    with pytest.raises(UserError, match=r"could not write .*taken\.gif"):
        save_gif(list(random_images(2)), tmp_path / "taken.gif")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "taken.gif"]
