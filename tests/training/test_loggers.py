"""Where figures go beside metrics.jsonl: the table that follows it, and a logger that fails."""

import csv
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from cifargan.runs.directory import RunDirectory
from cifargan.training import loggers
from cifargan.training.events import NoEvents
from cifargan.training.log import SturdyTracker
from cifargan.training.loggers import CSVTable, Guarded, Logger, flat


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def table(directory: RunDirectory) -> list[dict[str, str]]:
    with (directory.path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tracker(directory: RunDirectory, *more: Logger, first_step: int = 0) -> SturdyTracker:
    return SturdyTracker(
        directory, steps=40, first_step=first_step, events=NoEvents, loggers=[CSVTable(directory), *more]
    )


def column(directory: RunDirectory, name: str) -> list[tuple[str, str]]:
    return [(row["step"], row[name]) for row in table(directory)]


def test_a_new_name_is_a_new_column_and_what_is_missing_an_empty_cell(directory: RunDirectory) -> None:
    with tracker(directory) as tracking:
        tracking.scalars(5, {"a": 0.5, "b, c": math.nan})
        tracking.scalars(10, {"a": 1.5})
        # Readable while the run goes on.
        assert column(directory, "a") == [("5", "0.5"), ("10", "1.5")]
        tracking.records(10, [], {"score": 2.0})
    rows = table(directory)
    assert list(rows[0]) == ["step", "time", "a", "b, c", "score"]
    assert [(row["step"], row["a"], row["b, c"], row["score"]) for row in rows] == [
        ("5", "0.5", "", ""),
        ("10", "1.5", "", ""),
        ("10", "", "", "2.0"),
    ]


def test_a_known_name_is_appended_and_nothing_written_anew(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracker(directory) as tracking:
        tracking.scalars(5, {"a": 0.5})
        monkeypatch.setattr(loggers, "write_atomically", lambda *_: pytest.fail("written anew"))
        tracking.scalars(10, {"a": 1.5})
    assert column(directory, "a") == [("5", "0.5"), ("10", "1.5")]


def test_a_resumed_run_and_one_that_goes_back_tell_no_step_twice(directory: RunDirectory) -> None:
    with tracker(directory) as tracking:
        for step in (5, 10, 15):
            tracking.scalars(step, {"a": float(step)})
        tracking.rewind(10)
        tracking.scalars(15, {"a": -15.0})
    assert column(directory, "a") == [("5", "5.0"), ("10", "10.0"), ("15", "-15.0")]
    with (directory.path / "metrics.csv").open("a") as file:
        file.write("20,")  # the process died here
    with tracker(directory, first_step=10) as tracking:
        assert column(directory, "a") == [("5", "5.0"), ("10", "10.0")]
        tracking.scalars(20, {"a": 20.0})
    assert column(directory, "a") == [("5", "5.0"), ("10", "10.0"), ("20", "20.0")]


def test_a_table_that_could_not_be_written_is_whole_when_it_can(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker(directory) as tracking:
        tracking.scalars(5, {"a": 0.5})
        path = directory.path / "metrics.csv"
        path.unlink()
        path.mkdir()  # which no file can take the place of
        tracking.scalars(10, {"a": 1.5})
        tracking.scalars(15, {"a": 2.5})
        path.rmdir()
        tracking.scalars(20, {"a": 3.5})
    assert column(directory, "a") == [("5", "0.5"), ("10", "1.5"), ("15", "2.5"), ("20", "3.5")]
    first, second = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert first.startswith(f"metrics.csv of {directory.path} cannot be written (Is a directory): training goes on")
    assert second == f"metrics.csv of {directory.path} can be written again"


class Failing(Logger):
    """Fails where it is told to, and counts its calls."""

    what = "telegraph"

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            raise RuntimeError("the line is dead\nand more")

    def open(self) -> None:
        self._call("open")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._call("scalars")

    def rewind(self) -> None:
        self._call("rewind")

    def close(self) -> None:
        self._call("close")


@pytest.mark.parametrize("where", ["open", "scalars", "rewind", "close"])
def test_a_logger_that_fails_is_told_once_and_left_out(
    where: str, directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(where)
    with tracker(directory, Guarded(failing)) as tracking:
        tracking.scalars(5, {"a": 0.5})
        tracking.rewind(5)
        tracking.scalars(10, {"a": 1.5})
    assert column(directory, "a") == [("5", "0.5"), ("10", "1.5")]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "telegraph has failed (the line is dead): the run goes on without it; its figures are in metrics.jsonl"
    )
    order = ["open", "scalars", "rewind", "scalars", "close"]
    assert failing.calls == order[: order.index(where) + 1]


def test_settings_become_one_level() -> None:
    config = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": True}
    assert flat(config) == {"a.b.c": 1, "a.d": "None", "e": "[1, 2]", "f": True}
