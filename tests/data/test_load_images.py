"""Images to be evaluated: layouts, unchanged pixels, and images that are refused."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cifargan.data.folder import load_images
from cifargan.errors import UserError


def draw(n: int, size: int = 8) -> Tensor:
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def test_loose_files_have_one_class_and_their_own_pixels(tmp_path: Path) -> None:
    images = draw(3)
    for i, image in enumerate(images):
        save(image, tmp_path / ("below" if i == 2 else ".") / f"{i}.png")
    found = load_images(tmp_path)
    assert found.classes == ("all",)
    assert {tuple(image.flatten().tolist()) for image in found.images} == {
        tuple(image.flatten().tolist()) for image in images
    }
    assert found.image_size == 8


@pytest.mark.parametrize("zipped", [False, True])
def test_folders_are_classes_where_every_file_lies_in_one(tmp_path: Path, zipped: bool) -> None:
    images = draw(4)
    for i, image in enumerate(images):
        save(image, tmp_path / "set" / ("bee" if i % 2 else "ant") / f"{i}.png")
    path = tmp_path / "set"
    if zipped:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "set").rglob("*.png")):
                archive.write(file, file.relative_to(tmp_path / "set"))
    found = load_images(path)
    assert found.classes == ("ant", "bee")
    assert found.name == "set"
    assert torch.equal(found.images, images[[0, 2, 1, 3]])
    assert found.labels.tolist() == [0, 0, 1, 1]


def test_an_npz_file_of_samples_is_read_with_its_classes(tmp_path: Path) -> None:
    images = draw(4)
    path = tmp_path / "samples.npz"
    rows = images.permute(0, 2, 3, 1).numpy()
    np.savez(path, images=rows, labels=np.array([1, 0, 1, 0]), classes=np.array(["ant", "bee"]))
    found = load_images(path)
    assert torch.equal(found.images, images)
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.classes == ("ant", "bee")
    np.savez(path, rows)  # as many other tools write it
    assert torch.equal(load_images(path).images, images)
    assert load_images(path).classes == ("all",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixed", r"1\.png is broken \(9x9 where others are 8x8\)"),
        ("oblong", "8x6 where others are 8x8"),
        ("empty", "no PNG, JPEG or WebP file"),
        ("nowhere", "no folder or zip"),
        ("cut.npz", "damaged or not"),
    ],
)
def test_images_that_cannot_be_evaluated_are_one_line(tmp_path: Path, name: str, message: str) -> None:
    for i, size in enumerate((8, 9)):
        save(draw(1, size)[0], tmp_path / "mixed" / f"{i}.png")
    for folder in ("oblong", "empty"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "oblong" / "0.png")
    np.savez(tmp_path / "whole.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:50])
    with pytest.raises(UserError, match=message) as error:
        load_images(tmp_path / name)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)
