"""The lock on a run: one process at a time, and no lock of a dead process."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from cifargan.errors import UserError
from cifargan.runs.directory import RunDirectory
from cifargan.runs.lock import RunLock, is_locked

HOLD = """
import sys, time
from pathlib import Path
sys.modules["torch"] = None  # the lock does not need it, and its import takes seconds
from cifargan.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_by_another_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    directory.set_status("running", step=5)
    with held_by_another_process(tmp_path) as process:
        assert is_locked(tmp_path) is True
        assert directory.status()["status"] == "running"
        with pytest.raises(UserError, match=rf"another process \(process {process.pid} on .*, since 20") as error:
            directory.lock().__enter__()
        assert "\n" not in str(error.value)
        assert is_locked(tmp_path) is True  # after the attempt, too
        with monkeypatch.context() as patched:
            without_locks(patched, errno.EACCES)  # a read-only folder
            assert is_locked(tmp_path) is True
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert is_locked(tmp_path) is False
    assert is_locked(tmp_path) is False
    status = directory.status()
    assert (status["status"], status["died"], status["step"]) == ("interrupted", True, 5)
    with directory.lock():
        assert is_locked(tmp_path) is True
        assert directory.status()["status"] == "running"
    assert is_locked(tmp_path) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "status.json"]


def without_locks(patched: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("acquire", "__enter__"):
        patched.setattr(FileLock, name, refused)


@pytest.mark.parametrize("holder", ["", "[]", "{}", '{"pid": "x", "host": 3}', '{"pid": -1}', "[" * 10_000])
def test_an_unknown_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: str) -> None:
    with RunLock(tmp_path):
        (tmp_path / ".lock.holder").write_text(holder)
        with pytest.raises(UserError, match="another process: wait until it ends"):
            RunLock(tmp_path).__enter__()
        without_locks(monkeypatch, errno.EACCES)
        assert is_locked(tmp_path) is None


def test_only_a_running_run_can_have_died(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.status() == {}
    directory.set_status("running", step=3)
    assert is_locked(tmp_path) is None  # a copy of a run has no lock
    assert directory.status()["status"] == "running"
    with directory.lock():
        pass
    for ended in ("finished", "diverged", "failed", "interrupted"):
        directory.set_status(ended, step=3)
        assert directory.status()["status"] == ended
        assert "died" not in directory.status()


def test_a_start_that_failed_leaves_no_file(tmp_path: Path) -> None:
    with RunLock(tmp_path) as first:
        with pytest.raises(UserError, match=f"another process .process {os.getpid()} on"):
            RunLock(tmp_path).__enter__()
        first.forget()
    assert list(tmp_path.iterdir()) == []
    with RunLock(tmp_path):
        assert is_locked(tmp_path) is True
    with pytest.raises(UserError, match=r"could not lock the run directory .*(Not a directory|File exists)") as error:
        RunLock(tmp_path / ".lock" / "run").__enter__()
    assert "\n" not in str(error.value)


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".lock").touch()
    without_locks(monkeypatch, errno.ENOLCK)
    RunDirectory(tmp_path).set_status("running", step=1)
    with RunLock(tmp_path):
        (record,) = caplog.records
        assert "no locks here" in record.getMessage()
        assert is_locked(tmp_path) is True
    assert is_locked(tmp_path) is None
    assert RunDirectory(tmp_path).status()["status"] == "running"
