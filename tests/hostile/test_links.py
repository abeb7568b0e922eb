"""Links, pipes and devices in the folder of an untrusted run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cifargan.errors import UserError
from cifargan.loading import load_generator
from cifargan.runs.directory import RunDirectory
from cifargan.untrusted import require_no_links_out, require_no_pipes

Refusal = Callable[..., str]
Command = Callable[..., CompletedProcess[str]]
WRITING = (
    ("train", "resume={}", "trainer.steps=3"),
    ("evaluate", "{}", "--device", "cpu", "--quick", "--samples", "4"),
    ("sample", "{}", "--device", "cpu", "--per-class", "1"),
    ("sample", "{}", "--training-gif"),
    ("export", "{}", "--device", "cpu"),
)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("line", WRITING, ids=lambda line: line[0])
def test_nothing_is_written_through_a_link_and_nothing_waits_for_a_pipe(
    refusal: Refusal, run: Path, tmp_path: Path, line: tuple[str, ...]
) -> None:
    words = [word.format(run) for word in line]
    shutil.copytree(run / "samples", tmp_path / "outside")
    shutil.rmtree(run / "samples")
    (run / "samples").symlink_to(tmp_path / "outside")
    before = contents(tmp_path)
    assert f"{run / 'samples'} is a link to {tmp_path / 'outside'}" in refusal(*words)
    assert contents(tmp_path) == before
    (run / "samples").unlink()
    os.mkfifo(run / ".lock.pipe")
    assert f"{run / '.lock.pipe'} is neither a file nor a folder" in refusal(*words)


@pytest.mark.parametrize(
    "name", [".lock", "status.json", "checkpoints/step_000000003.safetensors", ".hydra", "deep/er"]
)
def test_every_place_in_a_run_is_checked(run: Path, tmp_path: Path, name: str) -> None:
    require_no_links_out(run)
    path = run / name
    path.parent.mkdir(exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "made")  # its target does not exist
    require_no_pipes(run)
    with pytest.raises(UserError, match=r"is a link to .*made"):
        RunDirectory(run).lock()
    path.unlink()
    path.symlink_to(run / "provenance.json")  # a link within the run is allowed
    require_no_links_out(run)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        load_generator(run)


def test_links_to_and_in_a_run_that_are_allowed(command: Command, run: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run.rename(disk / "run")
    (tmp_path / "linked").symlink_to(disk)
    (tmp_path / "short").symlink_to(disk / "run")
    for name in ("linked/run", "short"):
        assert command("sample", name, "--device", "cpu", "--per-class", "1").returncode == 0
    assert command("train", "resume=short", "trainer.steps=3").returncode == 0
    assert (disk / "run" / "checkpoints" / "step_000000003.safetensors").is_file()
    (disk / "run" / "checkpoints").rename(tmp_path / "elsewhere")  # a link is allowed where a command only reads
    (disk / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert command("sample", "short", "--device", "cpu", "--per-class", "1", "--out", "out").returncode == 0


def test_a_folder_whose_provenance_is_a_pipe_is_no_run(refusal: Refusal, run: Path) -> None:
    (run / "provenance.json").unlink()
    os.mkfifo(run / "provenance.json")
    assert not RunDirectory(run).holds_a_run()
    assert "there is no run at" in refusal("sample", str(run))
