"""Figures and pictures that cannot be written: told once, tried again, and whole when they can."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from cifargan.errors import UserError
from cifargan.runs.directory import RunDirectory
from cifargan.training import log
from cifargan.training.log import SturdyTracker


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[SturdyTracker]:
    with SturdyTracker(RunDirectory(tmp_path / "run"), steps=20) as tracker:
        yield tracker


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


class Full:
    """A file that takes half a line and then no more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text[: len(text) // 2])

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        pass


def test_lines_that_could_not_be_written_follow_whole_and_in_order(
    run: Path, tracker: SturdyTracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.scalars(1, {"a": 1.0})
    reopen = tracker._reopen

    def still_full(between: Any) -> None:
        reopen(between)
        tracker.metrics.close()
        tracker.metrics = Full(run / "metrics.jsonl")  # type: ignore[assignment]

    with monkeypatch.context() as patched:
        patched.setattr(tracker, "_reopen", still_full)
        tracker.metrics.close()
        tracker.metrics = Full(run / "metrics.jsonl")  # type: ignore[assignment]
        for step in (2, 3):
            tracker.scalars(step, {"a": 2.0})
            assert steps(run) == [1]
    tracker.metrics = (run / "metrics.jsonl").open("a", encoding="utf-8")
    tracker.scalars(4, {"a": 3.0})
    assert steps(run) == [1, 2, 3, 4]
    first, second = warnings(caplog)
    assert first == (
        f"metrics.jsonl of {run} cannot be written (No space left on device): training goes on, and tries again each time"
    )
    assert second == f"metrics.jsonl of {run} can be written again"


def test_tensorboard_gets_another_writer_after_an_error(
    run: Path, tracker: SturdyTracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.scalars(1, {"a": 1.0})

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("tensorboard.summary.writer.event_file_writer.EventFileWriter.add_event", fail)
        tracker.scalars(2, {"a": 2.0})
        tracker.scalars(3, {"a": 3.0})
    tracker.scalars(4, {"a": 4.0})
    assert steps(run) == [1, 2, 3, 4]
    assert [line.split(" (")[0] for line in warnings(caplog)] == [
        f"TensorBoard's events of {run} cannot be written",
        f"TensorBoard's events of {run} can be written again",
    ]
    events = EventAccumulator(str(run)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 1.0), (4, 4.0)]


def test_a_picture_that_cannot_be_written_is_told(
    run: Path, tracker: SturdyTracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise UserError("could not write it: Read-only file system")

    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(log, "save_png", fail)
        tracker.image("samples", picture, 5)
    (line,) = warnings(caplog)
    assert line.startswith(f"pictures of {run} cannot be written (could not write it: Read-only file system)")
    tracker.image("samples", picture, 6)
    assert [path.name for path in (run / "samples").iterdir()] == ["step_000000006.png"]


def test_a_folder_that_vanished_is_made_again(run: Path, tracker: SturdyTracker) -> None:
    tracker.scalars(1, {"a": 1.0})
    shutil.rmtree(run)
    tracker.scalars(2, {"a": 2.0})
    assert steps(run) == [2]
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("a")] == [2]


def test_what_lies_after_the_step_that_one_goes_back_to_is_forgotten(run: Path, tracker: SturdyTracker) -> None:
    for step in (1, 2, 3):
        tracker.scalars(step, {"a": float(step)})
    tracker.rewind(1)
    tracker.scalars(2, {"a": 20.0})
    assert steps(run) == [1, 2]
    events = EventAccumulator(str(run)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 1.0), (2, 20.0)]


def test_a_bug_is_not_taken_for_a_full_disk(run: Path, tracker: SturdyTracker) -> None:
    with pytest.raises(NotImplementedError):
        tracker.scalars(1, {"a": object()})  # type: ignore[dict-item]
