"""An untrusted run, commands that read it, and what must hold of each of them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

QUICK = (
    *("data=digits", "data.splits=[test]", "data.image_size=16", "device=cpu", "evaluator=none", "trainer.steps=1"),
    *("trainer.batch_size=4", "trainer.samples_per_class=1", "trainer.log_every=1", "trainer.checkpoint_every=1"),
    *("model.generator.latent_dim=8", "model.generator.base_channels=4", "model.discriminator.base_channels=4"),
)
SECRET = "no-file-may-reveal-this"


@pytest.fixture(scope="session")
def trained(invoke: Callable[..., CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    ran = invoke(folder, "train", *QUICK, "hydra.run.dir=run")
    assert ran.returncode == 0, ran.stderr
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run, on a machine with a secret in its environment."""
    monkeypatch.setenv("CIFARGAN_SECRET", SECRET)
    return Path(shutil.copytree(trained, tmp_path / "sent"))


def one_line(ran: CompletedProcess[str]) -> str:
    """The one line that a command refused with, seen to be one, and safe to show."""
    assert ran.returncode == 2, (ran.returncode, ran.stderr)
    assert "Traceback" not in ran.stderr
    assert SECRET not in ran.stderr + ran.stdout
    assert len(re.findall("^error: ", ran.stderr, re.MULTILINE)) == 1
    *_, line = ran.stderr.rstrip("\n").split("\n")
    assert line.startswith("error: ")
    assert line.isprintable()
    return line


@pytest.fixture
def refusal(command: Callable[..., CompletedProcess[str]]) -> Callable[..., str]:
    """A function that runs a command, checks that it refuses in one safe line, and gives that line."""
    return lambda *arguments: one_line(command(*arguments))
