"""Runs that last two steps, and pictures to train on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """The overrides of a training that takes no time."""
    return (
        *("data=digits", "data.splits=[test]", "data.image_size=16", "device=cpu", "evaluator=none"),
        "trainer.steps=2",
        *("trainer.batch_size=4", "trainer.samples_per_class=1", "trainer.log_every=1", "trainer.checkpoint_every=1"),
        *("model.generator.latent_dim=8", "model.generator.base_channels=4", "model.discriminator.base_channels=4"),
    )


@pytest.fixture(scope="session")
def trained(
    invoke: Callable[..., CompletedProcess[str]], quick: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished conditional run of two steps; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    ran = invoke(folder, "train", *quick, "trainer.ema.decay=0.9", "hydra.run.dir=run")
    assert ran.returncode == 0, ran.stderr
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run under this test's own `outputs`."""
    return Path(shutil.copytree(trained, tmp_path / "outputs" / "cdcgan" / "run"))


@pytest.fixture
def files(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """A function that reads every file of this test's folder, the cache aside."""

    def read() -> dict[str, bytes]:
        names = {path: path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for path, name in names.items() if not name.startswith(".cache/")}

    return read


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
