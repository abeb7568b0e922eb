"""Pictures to train on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a folder of images, four in each class."""

    def make(*classes: str) -> Path:
        random = np.random.default_rng(0)
        for name in classes:
            folder = tmp_path / "pictures" / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        return tmp_path / "pictures"

    return make
