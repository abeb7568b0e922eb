"""The lock on a run: one process at a time, and none left behind by a dead one."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cifargan.errors import UserError
from cifargan.runs import lock
from cifargan.runs.directory import RunDirectory
from cifargan.runs.lock import RunLock, is_locked

HOLD = """
import sys, time
from pathlib import Path
sys.modules["torch"] = None  # the lock needs none, and importing it takes seconds
import cifargan.errors
from importlib.machinery import SourceFileLoader
lock = SourceFileLoader("lock", sys.argv[2]).load_module()
with lock.RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_by_another_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(directory), str(lock.__file__)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.set_status("running", step=5)
    with held_by_another_process(tmp_path) as process:
        assert is_locked(tmp_path) is True
        assert directory.status()["status"] == "running"
        with pytest.raises(
            UserError, match=rf"is being trained by another process \(process {process.pid} on "
        ) as error:
            directory.lock().__enter__()
        assert "\n" not in str(error.value)
        assert is_locked(tmp_path) is True  # the attempt has not taken it away
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert is_locked(tmp_path) is False
    status = directory.status()
    assert (status["status"], status["died"], status["step"]) == ("interrupted", True, 5)
    with directory.lock():
        assert is_locked(tmp_path) is True
        assert directory.status()["status"] == "running"
    assert is_locked(tmp_path) is False


def test_only_a_running_run_can_have_died(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.status() == {}
    with directory.lock():
        pass
    for ended in ("finished", "diverged", "failed", "interrupted"):
        directory.set_status(ended, step=3)
        assert directory.status()["status"] == ended
        assert "died" not in directory.status()


def test_a_run_from_before_there_were_locks_is_taken_at_its_word(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.set_status("running", step=3)
    assert is_locked(tmp_path) is None
    assert directory.status()["status"] == "running"


def test_within_a_process_the_second_is_refused_too(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(UserError, match="is being trained by this very process"):
            RunLock(tmp_path).__enter__()
        assert is_locked(tmp_path) is True
    with RunLock(tmp_path):
        pass


def test_a_start_that_failed_leaves_no_file_and_whoever_waited_for_it_gets_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunLock(tmp_path)
    with first:
        first.forget()
        assert list(tmp_path.iterdir()) == []
    take, calls = lock._lock, 0

    def removed_meanwhile(descriptor: int, directory: Path) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / ".lock").unlink()
        return take(descriptor, directory)

    monkeypatch.setattr(lock, "_lock", removed_meanwhile)
    with RunLock(tmp_path):
        assert calls == 2
        assert (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_here(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", none_here)
    with RunLock(tmp_path):
        (record,) = caplog.records
        assert "no locks here" in record.getMessage()
    RunDirectory(tmp_path).set_status("running", step=1)
    assert is_locked(tmp_path) is None
    assert RunDirectory(tmp_path).status()["status"] == "running"


def test_a_folder_that_takes_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not lock the run directory .*No such file") as error:
        RunLock(tmp_path / "gone").__enter__()
    assert "\n" not in str(error.value)
