"""Decoding of one file, and of many in several threads."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifargan.data import decode as module
from cifargan.data.decode import decode, decode_files
from cifargan.data.sources import resize
from cifargan.data.storage import Directory

Draw = Callable[..., Image.Image]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_image_is_cropped_and_not_resampled(draw: Draw) -> None:
    image = draw(0)
    expected = np.asarray(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(encoded(image), image_size=8), expected)
    np.testing.assert_array_equal(decode(encoded(image, "WEBP", lossless=True), image_size=8), expected)
    wide, tall = draw(0, (13, 8)), draw(1, (8, 12))
    np.testing.assert_array_equal(decode(encoded(wide), image_size=8), np.asarray(wide)[:, 2:10].transpose(2, 0, 1))
    np.testing.assert_array_equal(decode(encoded(tall), image_size=8), np.asarray(tall)[2:10].transpose(2, 0, 1))


@pytest.mark.parametrize(("before", "after"), [(64, 16), (8, 32)])
def test_resampling_agrees_with_that_of_arrays(draw: Draw, before: int, after: int) -> None:
    image = draw(0, (before, before))
    array = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    ours = torch.from_numpy(decode(encoded(image), image_size=after).copy())
    torch.testing.assert_close(ours.int(), resize(array, after)[0].int(), rtol=0, atol=1)


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_modes_without_transparency_become_rgb(draw: Draw, mode: str) -> None:
    image = draw(0, mode=mode)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(encoded(image), image_size=8), expected)
    red = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), image_size=8)
    np.testing.assert_allclose(red.mean(axis=(1, 2)), [255, 0, 0], atol=3)


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))  # transparent red
    image.paste((10, 20, 30, 255), (0, 0, 4, 8))
    image.putpixel((7, 7), (0, 0, 0, 51))
    pixels = decode(encoded(image), image_size=8)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, 0, 7].tolist() == [255, 255, 255]
    assert pixels[:, 7, 7].tolist() == [204, 204, 204]  # a fifth black
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([9, 9, 9, 1, 2, 3])
    palette.putpixel((0, 0), 1)
    pixels = decode(encoded(palette, transparency=0), image_size=8)
    assert pixels[:, 0, :2].T.tolist() == [[1, 2, 3], [255, 255, 255]]


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    pixels = decode(encoded(Image.fromarray(levels)), image_size=8)
    np.testing.assert_array_equal(pixels, np.rint(levels / 257).astype(np.uint8)[None].repeat(3, 0))


def test_a_photograph_is_set_upright(draw: Draw) -> None:
    image = draw(0)
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    expected = np.asarray(image.rotate(180)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(encoded(image, exif=exif), image_size=8), expected)


def test_too_many_pixels_are_refused_before_they_are_unpacked(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    decode(encoded(draw(0, (10, 10))), image_size=8)
    with pytest.raises(ValueError, match="11x10 is more than"):
        decode(encoded(draw(0, (11, 10))), image_size=8)


def test_several_threads_give_what_one_gives(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.png" for i in range(40)]
    for i, name in enumerate(names):
        draw(i).save(tmp_path / name)
    (tmp_path / "17.png").write_bytes(b"no image at all")
    monkeypatch.setattr(module, "CHUNK", 7)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    broken: dict[str, str] = {}
    for threads in (1, 4):
        monkeypatch.setattr(module, "MAX_THREADS", threads)
        broken.clear()
        images, good = decode_files(
            Directory(tmp_path), names, image_size=8, label="test", on_broken=broken.__setitem__
        )
        assert good.tolist() == [i != 17 for i in range(40)]
        assert broken == {"17.png": "not a PNG, JPEG or WebP image"}
        expected = np.stack([np.asarray(draw(i)).transpose(2, 0, 1) for i in range(40) if i != 17])
        np.testing.assert_array_equal(images, expected)
