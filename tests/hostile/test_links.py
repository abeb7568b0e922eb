"""Links and pipes in the folder of a run that somebody sent."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cifargan.errors import UserError
from cifargan.loading import load_generator
from cifargan.runs.directory import RunDirectory

Refusal = Callable[..., str]
Command = Callable[..., CompletedProcess[str]]
WRITING = (
    ("train", "resume={}", "trainer.steps=2"),
    ("evaluate", "{}", "--device", "cpu", "--quick", "--samples", "4"),
    ("sample", "{}", "--device", "cpu", "--per-class", "1"),
    ("sample", "{}", "--training-gif"),
)
FILES = (
    *("metrics.jsonl", ".lock", "train.log", "status.json", "evaluation.json", "checkpoints/best.safetensors"),
    *("checkpoints/step_000000002.safetensors", "samples/step_000000002.png", "generated/x.png"),
)
FOLDERS = ("checkpoints", "samples", ".hydra_1", "generated", "evaluation")


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def replace(path: Path, target: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, dirs_exist_ok=True)
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("line", "name"),
    [*((WRITING[0], name) for name in (*FILES, *FOLDERS)), *((line, "samples") for line in WRITING[1:])],
)
def test_nothing_is_written_through_a_link(
    refusal: Refusal, run: Path, tmp_path: Path, line: tuple[str, ...], name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "own").write_text("mine")
    replace(run / name, outside if name in FOLDERS else outside / "own")
    before = contents(tmp_path)
    said = refusal(*(word.format(run) for word in line))
    assert f"{run / name} is a link to {outside}" in said
    assert contents(tmp_path) == before


def test_a_link_that_leads_nowhere_yet_is_one_to_the_outside(refusal: Refusal, run: Path, tmp_path: Path) -> None:
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").symlink_to(tmp_path / "made")
    assert "is a link to" in refusal("train", f"resume={run}", "trainer.steps=2")
    assert not (tmp_path / "made").exists()


def test_a_run_that_is_reached_through_links(command: Command, run: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run.rename(disk / "run")
    (tmp_path / "outputs").symlink_to(disk)
    (tmp_path / "short").symlink_to(disk / "run")
    # One within the run harms nobody.
    (disk / "run" / "checkpoints" / "newest.safetensors").symlink_to("step_000000001.safetensors")
    for name in ("outputs/run", "short"):
        assert command("sample", name, "--device", "cpu", "--per-class", "1").returncode == 0
    assert command("train", "resume=short", "trainer.steps=2").returncode == 0
    assert len(list((disk / "run" / "checkpoints").glob("step_*.safetensors"))) == 2


def test_what_is_only_read_may_be_a_link(command: Command, run: Path, tmp_path: Path) -> None:
    replace(run / "checkpoints", tmp_path / "elsewhere")
    assert command("sample", str(run), "--device", "cpu", "--per-class", "1", "--out", "out").returncode == 0


@pytest.mark.parametrize("line", WRITING, ids=" ".join)
@pytest.mark.parametrize("name", [".lock", "checkpoints/step_000000009.safetensors"])
def test_nothing_waits_for_a_pipe(refusal: Refusal, run: Path, line: tuple[str, ...], name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert f"{run / name} is neither a file nor a folder" in refusal(*(word.format(run) for word in line))


def test_nothing_reads_a_device_without_end(run: Path) -> None:
    (run / "checkpoints" / "step_000000009.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        load_generator(run)


def test_a_run_whose_provenance_is_a_pipe_is_none(refusal: Refusal, run: Path) -> None:
    (run / "provenance.json").unlink()
    os.mkfifo(run / "provenance.json")
    assert not RunDirectory(run).holds_a_run()
    assert "there is no run at" in refusal("sample", str(run))
