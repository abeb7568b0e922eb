"""Small sets of image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def draw() -> Callable[..., Image.Image]:
    """A function that makes an image of random pixels from a seed."""

    def make(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert(mode)

    return make


@pytest.fixture
def tree(tmp_path: Path, draw: Callable[..., Image.Image]) -> Path:
    """train/{ant,bee} with 3 and 2 images and test/{ant,bee} with 1 each, 8x8 PNG."""
    root = tmp_path / "insects"
    seed = 0
    for folder, count in (("train/ant", 3), ("train/bee", 2), ("test/ant", 1), ("test/bee", 1)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            draw(seed).save(root / folder / f"{i}.png")
            seed += 1
    return root
