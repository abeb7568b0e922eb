"""The folder of a run: one run in each, with its status and provenance."""

import json
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from cifargan.errors import UserError
from cifargan.runs.directory import RunDirectory
from cifargan.runs.provenance import device_name, git_state, versions


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr("cifargan.runs.directory.git_state", lambda folder: {"commit": "c0ffee", "dirty": True})
    return RunDirectory(tmp_path / "outputs" / "model" / "time")


def test_a_folder_is_claimed_once(directory: RunDirectory) -> None:
    directory.claim()
    directory.claim()  # nothing was started in between
    assert not directory.holds_a_run()
    directory.add_provenance(seed=0)
    assert directory.holds_a_run()
    with pytest.raises(UserError, match=f"{directory.path} already holds a run: .*resume={directory.path}") as error:
        directory.claim()
    assert "\n" not in str(error.value)
    (directory.path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the run directory .*Not a directory"):
        RunDirectory(directory.path / "file" / "run").claim()


def test_every_start_adds_a_session(directory: RunDirectory) -> None:
    directory.claim()
    directory.add_event(what="ignored before the first start")
    assert not directory.holds_a_run()
    directory.add_provenance(seed=3, command=["cifargan", "train"], first_step=0)
    directory.add_provenance(seed=3, command=["cifargan", "train"], first_step=40)
    directory.add_event(what="rollback", to=40)
    first, second = json.loads((directory.path / "provenance.json").read_text())["sessions"]
    assert (first["first_step"], second["first_step"]) == (0, 40)
    assert first["seed"] == 3
    assert first["git"] == {"commit": "c0ffee", "dirty": True}
    assert first["versions"] == versions()
    assert first["platform"] == platform.platform()
    assert first["started"] <= second["started"]
    assert "events" not in first
    (event,) = second["events"]  # of the newest start
    assert (event["what"], event["to"]) == ("rollback", 40)


def test_versions_and_device() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert {"cifargan", "torchvision", "torchmetrics", "torch-fidelity", "hydra-core", "numpy"} <= found.keys()
    assert device_name(torch.device("cpu")) == f"cpu ({platform.machine()})"


def test_the_status_is_replaced_and_names_its_process(directory: RunDirectory) -> None:
    directory.claim()
    directory.set_status("running", step=0)
    directory.set_status("diverged", step=12)
    status = directory.read_json("status.json")
    assert status.pop("time") > 1.7e9
    assert status == {"status": "diverged", "step": 12, "pid": os.getpid()}
    assert [path.name for path in directory.path.iterdir()] == ["status.json"]


def test_a_missing_or_damaged_json_file_is_an_empty_one(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    assert directory.read_json("status.json") == {}
    directory.claim()
    assert caplog.records == []
    (directory.path / "status.json").write_text("{")
    assert directory.read_json("status.json") == directory.status() == {}
    assert "status.json cannot be read" in caplog.text


def test_there_is_no_commit_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_and_changes_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--no-verify", "--message", "first")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("other")
    state = git_state(tmp_path)
    assert state is not None
    assert state["dirty"] is True
