"""What docs/extending.md shows is short, trains and is sampled, in both of the ways that it tells."""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

from cifargan import registry

ROOT = Path(__file__).parents[2]
Invoke = Callable[..., CompletedProcess[str]]
QUICK = (
    *("device=cpu", "evaluator=none", "data.image_size=16", "trainer.steps=2", "trainer.batch_size=4"),
    *("trainer.samples_per_class=1", "trainer.log_every=1", "model.discriminator.base_channels=4"),
)
# The Python file, its config, what chooses it.
EXAMPLES = {
    "model": ("my_gan.py", "mine/model/upsampling.yaml", ("model=upsampling", "model.generator.channels=4")),
    "loss": ("my_loss.py", "mine/loss/least_squares.yaml", ("loss=least_squares", "loss.target=0.9")),
    "data": ("my_data.py", "mine/data/arrays.yaml", ("data=arrays", "data.root=arrays")),
}
# How a fork knows them: the folder of the class, its name, the entry of a registry that the new one follows.
FORK = {
    "model": ("models", "UpsamplingGenerator", '"dense": DenseGenerator, '),
    "loss": ("objectives", "LeastSquaresLoss", '"bce": BCELoss, '),
    "data": ("data", "Arrays", '"cifar10": CIFAR10, '),
}


@pytest.fixture
def shown(named_blocks: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    """The files that the page shows."""
    return named_blocks(ROOT / "docs" / "extending.md")


@pytest.fixture
def desk(shown: dict[str, str], world: Path, invoke: Invoke) -> Iterator[Path]:
    """A folder with these files, and arrays to train on; registries are as they were afterwards."""
    for name, content in shown.items():
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_text(content, encoding="utf-8")
    drawn = invoke(world, "sample", "RUN", "--per-class", "2", "--format", "npz", "--out", "arrays", "--device", "cpu")
    assert drawn.returncode == 0, drawn.stderr
    (world / "arrays" / "samples.npz").rename(world / "arrays" / "train.npz")
    with patch.dict(registry.GENERATORS), patch.dict(registry.LOSSES), patch.dict(registry.SOURCES):
        yield world


def test_the_page_shows_these_files_and_no_others(shown: dict[str, str]) -> None:
    assert [*shown] == [name for files in EXAMPLES.values() for name in files[:2]]


@pytest.mark.parametrize("part", EXAMPLES)
def test_an_example_has_under_60_lines(part: str, shown: dict[str, str]) -> None:
    assert sum(len(shown[name].splitlines()) for name in EXAMPLES[part][:2]) < 60


@pytest.mark.parametrize("part", EXAMPLES)
def test_a_file_beside_ones_own_configs_trains_and_samples(part: str, desk: Path, invoke: Invoke) -> None:
    file, _, chosen = EXAMPLES[part]
    data = () if part == "data" else ("data=digits", "data.splits=[test]")
    command = ("train", "--config-dir", "mine", *data, *chosen, *QUICK, "hydra.run.dir=trained")
    sample = ("sample", "trained", "--per-class", "2", "--device", "cpu")
    refused = invoke(desk, *command)
    assert refused.returncode == 2
    assert "no such name" in refused.stderr
    runpy.run_path(str(desk / file))
    trained = invoke(desk, *command)
    assert trained.returncode == 0, trained.stderr
    drawn = invoke(desk, *sample)
    assert drawn.returncode == 0, drawn.stderr
    assert len([*desk.glob("trained/generated/*/GAN_2_Generated_*.png")]) == 10


@pytest.mark.slow
def test_a_run_with_ones_own_model_needs_its_file(desk: Path, invoke: Invoke) -> None:
    with patch.dict(registry.GENERATORS):
        runpy.run_path(str(desk / "my_gan.py"))
        data = ("data=digits", "data.splits=[test]")
        invoke(desk, "train", "--config-dir", "mine", *data, *EXAMPLES["model"][2], *QUICK, "hydra.run.dir=trained")
    refused = invoke(desk, "sample", "trained", "--per-class", "2", "--device", "cpu")
    assert refused.returncode == 2
    assert "model.generator.name=upsampling: no such name" in refused.stderr
    assert "upsampling: no such name" in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_settings_of_an_example_are_checked(desk: Path, invoke: Invoke) -> None:
    runpy.run_path(str(desk / "my_loss.py"))
    for wrong, words in (("loss.targt=1", "loss.targt: no such setting"), ("loss.target=0", "must be above 0")):
        overrides = wrong if "targt" not in wrong else f"+{wrong}"
        ran = invoke(desk, "train", "--config-dir", "mine", "data=digits", "loss=least_squares", overrides, *QUICK)
        assert ran.returncode == 2
        assert words in ran.stderr


@pytest.mark.slow
def test_a_fork_has_all_three(desk: Path, shown: dict[str, str]) -> None:
    fork = desk / "fork"
    shutil.copytree(ROOT / "src", fork / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", fork / "conf")
    package = fork / "src" / "cifargan"
    edited = package / "registry.py"
    known = edited.read_text(encoding="utf-8")
    for part, (folder, name, before) in FORK.items():
        file, config, _ = EXAMPLES[part]
        own, _, _ = shown[file].partition("\n\nregistry.")
        for line in ("import sys\n", "from cifargan import registry\n", "from cifargan.cli import main\n"):
            assert line in own
            own = own.replace(line, "")
        (package / folder / "mine.py").write_text(own, encoding="utf-8")
        (fork / config.replace("mine", "conf", 1)).write_text(shown[config], encoding="utf-8")
        assert known.count(before) == 1
        known = known.replace(before, f'{before}"{Path(config).stem}": {name}, ')
        known = known.replace(
            "from cifargan.schema", f"from cifargan.{folder}.mine import {name}\nfrom cifargan.schema", 1
        )
    edited.write_text(known, encoding="utf-8")
    chosen = [override for *_, overrides in EXAMPLES.values() for override in overrides]
    environment = {**os.environ, "PYTHONPATH": str(fork / "src"), "OMP_NUM_THREADS": "1"}
    for command in (
        ["train", *chosen, *QUICK, "hydra.run.dir=trained"],
        ["sample", "trained", "--per-class", "2", "--device", "cpu"],
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "cifargan", *command],
            cwd=desk,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    assert len([*desk.glob("trained/generated/*/GAN_2_Generated_*.png")]) == 10
