"""A run as a stranger would send it, commands pointed at it, and what must hold of every one of them."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from cifargan.runs.checkpoint import CheckpointStore, State, load

QUICK = (
    *("data=digits", "data.splits=[test]", "data.image_size=16", "device=cpu", "evaluator=none", "trainer.steps=1"),
    *("trainer.batch_size=4", "trainer.samples_per_class=1", "trainer.log_every=1", "trainer.checkpoint_every=1"),
    *("model.generator.latent_dim=8", "model.generator.base_channels=4", "model.discriminator.base_channels=4"),
)
SECRET = "no-stranger-may-learn-this"


class Payload:
    """Makes the folder `canary` when it is unpickled by a reader that runs code."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder that only a payload makes."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a stranger's code ran"


@pytest.fixture
def payload(canary: Path) -> Payload:
    """An object that runs code when it is unpickled."""
    return Payload(canary)


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


@pytest.fixture
def tampered(run: Path) -> Callable[[Callable[[State], Any]], Path]:
    """A function that changes the state in the checkpoint of `run`, with a checksum that fits."""

    def change(how: Callable[[State], Any]) -> Path:
        store = CheckpointStore(run / "checkpoints")
        state = load(store.find("last"))
        how(state)
        state.pop("format", None)
        store.save(state, 1)
        return run

    return change


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


@pytest.fixture
def within() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """A function for a block that may add so many MiB to the memory of this process, at its highest."""
    resetter = Path("/proc/self/clear_refs")
    if not resetter.exists() or not os.access(resetter, os.W_OK):
        pytest.skip("only Linux tells the highest memory of a part of a process")

    def status(key: str) -> int:
        return int(re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])

    @contextlib.contextmanager
    def measured(mebibytes: int) -> Iterator[None]:
        resetter.write_text("5")
        before = status("VmRSS")
        yield
        assert (status("VmHWM") - before) / 1024 < mebibytes

    return measured


@pytest.fixture
def tensors_file(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves an object as torch does, in its present format or its old one."""

    def save(content: Any, *, old: bool = False) -> Path:
        path = tmp_path / "sent.pth"
        torch.save(content, path, _use_new_zipfile_serialization=not old)
        return path

    return save
