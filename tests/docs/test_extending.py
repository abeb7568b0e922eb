"""The files that docs/extending.md shows train, resume, sample and score, beside own configs and in a fork."""

import contextlib
import json
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
    *("device=cpu", "data.image_size=16", "trainer.steps=2", "trainer.batch_size=4", "data=digits"),
    *("trainer.samples_per_class=1", "trainer.log_every=1", "trainer.checkpoint_every=1"),
)
SMALL = ("model.generator.base_channels=4", "model.discriminator.base_channels=4", "model.generator.latent_dim=8")
# The file, its configs, what chooses its parts, and what the run then logs.
EXAMPLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], set[str]]] = {
    "my_gan.py": (
        ("mine/model/upsampling.yaml",),
        ("model=upsampling", "model.generator.channels=4", "data.splits=[test]", "evaluator=none"),
        {"loss/class_real", "loss/class_fake", "accuracy/class_real"},
    ),
    "my_objective.py": (
        ("mine/loss/least_squares.yaml", "mine/regularizer/drift.yaml"),
        (
            *("loss=least_squares", "regularizer=[drift,lecam]", "augment.name=noise", "evaluator=none"),
            *("optimizer.generator.name=adamw", "data.splits=[test]", *SMALL),
        ),
        {"loss/real", "loss/fake", "loss/drift", "loss/lecam"},
    ),
    "my_data.py": (
        ("mine/evaluator/pixels.yaml",),
        (
            *("data.name=stripes", "evaluator=pixels", "evaluator.metrics=[fid,brightness]", *SMALL),
            *("trainer.loggers=[csv,lines]", "evaluator.every=2", "evaluator.samples=60", "evaluator.final_samples=0"),
        ),
        {"score/fd_pixels_4_n60_train", "score/brightness_n60_train"},
    ),
}


@contextlib.contextmanager
def own_registries() -> Iterator[None]:
    """While entered, parts may be registered; afterwards the registries are as they were."""
    with contextlib.ExitStack() as stack:
        for known in (*registry.REGISTRIES, registry.METRICS):
            stack.enter_context(patch.dict(known))
        yield


@pytest.fixture
def shown(named_blocks: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    """The files that the page shows."""
    return named_blocks(ROOT / "docs" / "extending.md")


@pytest.fixture
def desk(shown: dict[str, str], tmp_path: Path) -> Path:
    """A folder with these files."""
    for name, content in shown.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def logged(run: Path) -> set[str]:
    return {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}


def test_the_page_shows_these_files_and_no_others(shown: dict[str, str]) -> None:
    assert [*shown] == [name for file, (configs, *_) in EXAMPLES.items() for name in (file, *configs)]
    kinds = [name for name, known in vars(registry).items() if name.isupper() and isinstance(known, dict)]
    assert len(kinds) == 12
    assert all(f"registry.{kind}[" in "".join(shown.values()) for kind in kinds)


@pytest.mark.parametrize("file", EXAMPLES)
def test_a_file_beside_own_configs_trains_resumes_and_samples(file: str, desk: Path, invoke: Invoke) -> None:
    _, chosen, figures = EXAMPLES[file]
    command = ("train", "--config-dir", "mine", *QUICK, *chosen, "hydra.run.dir=run")
    refused = invoke(desk, *command)
    assert refused.returncode == 2
    assert "no such" in refused.stderr
    with own_registries():
        runpy.run_path(str(desk / file))
        trained = invoke(desk, *command)
        assert trained.returncode == 0, trained.stderr
        assert figures <= logged(desk / "run")
        for words in (
            ("train", "--config-dir", "mine", "resume=run", "trainer.steps=3"),
            ("sample", "run", "--per-class", "2", "--device", "cpu"),
        ):
            ran = invoke(desk, *words)
            assert ran.returncode == 0, ran.stderr
    assert [*desk.glob("run/generated/step_3-*/GAN_2_Generated_*.png")]


@pytest.mark.slow
def test_own_networks_are_scored_exported_and_fine_tuned(desk: Path, invoke: Invoke) -> None:
    _, chosen, _ = EXAMPLES["my_gan.py"]
    with own_registries():
        for file in ("my_gan.py", "my_data.py"):
            runpy.run_path(str(desk / file))
        init = ("init=run", "trainer.freeze_d=1", *QUICK, "data.splits=[test]", "evaluator=none")
        options = ("--device", "cpu", "--samples", "60", "--reference", "test")
        for words in (
            ("train", "--config-dir", "mine", *QUICK, *chosen, "hydra.run.dir=run"),
            ("evaluate", "run", *options, "--evaluator", "pixels", "--metrics", "fid,brightness,head_hit_rate"),
            ("export", "run", "--format", "safetensors", "--device", "cpu"),
            ("train", "--config-dir", "mine", *init, "hydra.run.dir=tuned"),
        ):
            ran = invoke(desk, *words)
            assert ran.returncode == 0, ran.stderr
        scores = json.loads((desk / "run" / "evaluation.json").read_text())["records"]
        assert {score["metric"] for score in scores} == {"fd_pixels_4", "brightness", "head_hit_rate"}
    needed = invoke(desk, "sample", "run", "--per-class", "2", "--device", "cpu")
    assert needed.returncode == 2
    assert "model.generator.name=upsampling: no such name" in needed.stderr
    assert "upsampling: no such name" in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_an_error_in_an_own_part_names_its_file(desk: Path, invoke: Invoke) -> None:
    broken = (desk / "my_gan.py").read_text().replace("y)  # of features", "y.nonsense)  # of features")
    (desk / "my_gan.py").write_text(broken)
    with own_registries():
        runpy.run_path(str(desk / "my_gan.py"))
        ran = invoke(desk, "train", "--config-dir", "mine", *QUICK, *EXAMPLES["my_gan.py"][1])
    line = next(number for number, text in enumerate(broken.splitlines(), 1) if "y.nonsense" in text)
    assert ran.returncode == 1
    assert f"error: an error in {desk / 'my_gan.py'}, line {line}: AttributeError(" in ran.stderr


@pytest.mark.slow
def test_a_fork_has_a_part_of_its_own(desk: Path, shown: dict[str, str]) -> None:
    fork = desk / "fork"
    shutil.copytree(ROOT / "src", fork / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", fork / "conf")
    package = fork / "src" / "cifargan"
    own, _, _ = shown["my_gan.py"].partition("\n\nregistry.")
    for line in ("from cifargan import registry\n", "from cifargan.cli import main\n"):
        assert line in own
        own = own.replace(line, "")
    (package / "models" / "mine.py").write_text(own, encoding="utf-8")
    (fork / "conf" / "model" / "upsampling.yaml").write_text(shown["mine/model/upsampling.yaml"], encoding="utf-8")
    names = {"GENERATORS": "Upsampling", "DISCRIMINATORS": "Patches", "HEADS": "DeepHead", "CLASSIFICATIONS": "Focal"}
    keys = ("upsampling", "patches", "deep", "focal")
    text = f"\nfrom cifargan.models.mine import {', '.join(names.values())}  # noqa: E402\n" + "".join(
        f'{kind}["{key}"] = {name}\n' for (kind, name), key in zip(names.items(), keys, strict=True)
    )
    with (package / "registry.py").open("a", encoding="utf-8") as file:
        file.write(text)
    environment = {**os.environ, "PYTHONPATH": str(fork / "src"), "OMP_NUM_THREADS": "1"}
    for command in (
        ["train", *QUICK, *EXAMPLES["my_gan.py"][1], "hydra.run.dir=trained"],
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
