"""The run log: failures cost a warning, progress is shown, and throughput leaves evaluations out."""

import io
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cifargan.registry import LOGGERS
from cifargan.runs.directory import RunDirectory
from cifargan.training.log import RunLog, Throughput
from cifargan.training.loggers import Logger
from cifargan.training.loop import Trainer

VALUES = {"D": 1.23456, "G": 0.5, "real": 0.75}


class Own(Logger):
    """A user's logger, which keeps the names of its calls and fails at some."""

    what = "telegraph"

    def __init__(self, directory: RunDirectory, config: Mapping[str, Any]) -> None:
        super().__init__(directory, config)
        self.error: Exception | None = None
        self.fails_at = ""
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.error and name == self.fails_at:
            raise self.error

    def open(self, step: int) -> None:
        self._call(f"open {step}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._call(f"scalars {step}")

    def rewind(self, step: int) -> None:
        self._call(f"rewind {step}")

    def close(self) -> None:
        self._call("close")


CALLS = ["open 3", "scalars 5", "rewind 4", "scalars 10", "close"]


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(RunDirectory(tmp_path), {})


def session(own: Own) -> None:
    log = RunLog(own.directory, [own], first_step=3)
    assert own.calls == []  # a run that fails before its first message leaves what is there as it is
    with log:
        log.scalars(5, {"a": 0.5})
        log.rewind(4)
        log.scalars(10, {"a": 1.5})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_logger_is_opened_called_and_closed(own: Own) -> None:
    session(own)
    assert own.calls == CALLS


def test_an_own_logger_is_one_class_in_the_registry(
    new_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Own] = []

    def make(directory: RunDirectory, config: Mapping[str, Any]) -> Own:
        made.append(Own(directory, config))
        return made[-1]

    monkeypatch.setitem(LOGGERS, "telegraph", make)
    new_trainer("run", "trainer.loggers=[telegraph]", "trainer.steps=2", "trainer.log_every=1").fit()
    (own,) = made
    assert own.calls == ["open 0", "scalars 1", "scalars 2", "close"]
    assert own.config["trainer"]["steps"] == 2


@pytest.mark.parametrize("where", CALLS)
def test_an_own_logger_that_fails_is_reported_once_and_left_out(
    where: str, own: Own, caplog: pytest.LogCaptureFixture
) -> None:
    own.fails_at, own.error = where, RuntimeError("the line is dead\nand more")
    session(own)
    (line,) = warnings(caplog)
    assert "telegraph has failed (the line is dead): the run continues" in line
    assert own.calls == CALLS[: CALLS.index(where) + 1]


def test_a_file_that_cannot_be_written_is_reported_once_and_tried_again(
    own: Own, caplog: pytest.LogCaptureFixture
) -> None:
    own.is_file = True
    own.error = OSError(28, "No space left on device")
    with RunLog(own.directory, [own]) as log:
        for step in (1, 2, 3):
            own.fails_at = f"scalars {step}" if step < 3 else ""
            log.scalars(step, {})
    assert own.calls == ["open 0", "scalars 1", "scalars 2", "scalars 3", "close"]
    first, second = warnings(caplog)
    assert "telegraph of" in first
    assert "cannot be written (No space left on device): the run continues" in first
    assert "can be written again" in second


def test_a_bug_is_not_taken_for_a_full_disk(own: Own) -> None:
    own.is_file, own.fails_at, own.error = True, "scalars 5", TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        session(own)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("cifargan.training.log.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_without_a_terminal_there_are_lines_with_speed_and_time_left(
    own: Own, now: list[float], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with RunLog(own.directory, steps=300, first_step=100) as log:
        now[0] += 20.0
        log.advance(150)
        log.report(150, VALUES)
        log.rewind(120)  # the steps after 120 do not count
        now[0] += 10.0
        log.report(140, {})
    # 50 steps in 20 s are 2.5 steps/s, and 150 are left.
    lines = ["step 150/300  2.5 steps/s  01:00 left  D 1.23  G 0.5  real 0.75", "step 140/300  2 steps/s  01:20 left  "]
    assert [record.getMessage() for record in caplog.records] == lines
    assert capsys.readouterr().err.splitlines() == lines  # and no bar


def test_on_a_terminal_there_is_a_bar(
    own: Own, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    with RunLog(own.directory, steps=300, first_step=100) as log:
        log.advance(150)
        log.report(150, VALUES)
    last = screen.getvalue().split("\r")[-1]
    assert "150/300" in last
    assert "D=1.23, G=0.5, real=0.75" in last
    assert caplog.records == []


def test_another_rank_shows_nothing(
    own: Own, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with RunLog(own.directory) as log:
        log.scalars(5, VALUES)
        log.advance(5)
        log.report(5, VALUES)
    assert caplog.records == []
    assert capsys.readouterr().err == ""
    assert list(own.directory.path.iterdir()) == []


def test_throughput_of_each_lap_leaves_evaluations_out(now: list[float]) -> None:
    throughput = Throughput()
    assert throughput.lap(0) == 0.0
    now[0] += 50  # before the start
    throughput.start(1000)
    now[0] += 10
    throughput.pause(6.0)
    assert throughput.paused_share == 0.6
    assert throughput.lap(1008) == 2.0
    now[0] += 10
    assert throughput.lap(1018) == 1.0
    assert throughput.paused_share == 0.3
    now[0] += 5
    throughput.restart(1010)  # the run went back
    now[0] += 10
    assert throughput.lap(1030) == 2.0
