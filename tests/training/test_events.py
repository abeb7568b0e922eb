"""Of several files of TensorBoard's events the last one made has the last word, however fast they were made."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]

from cifargan.training import events
from cifargan.training.events import EventWriter, NoEvents

MOMENT = 1_800_000_000.25


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments slept to, first of all where the clock stands; and writers numbered 9, 10, 11 in their names."""
    moments = [MOMENT]
    still = SimpleNamespace(time=lambda: moments[-1], sleep=lambda seconds: moments.append(moments[-1] + seconds))
    monkeypatch.setattr(events, "time", still)
    monkeypatch.setattr(event_file_writer, "time", still)
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    return moments


def write(directory: Path, value: float, *, purge_step: int = 1) -> None:
    writer = EventWriter(str(directory), purge_step=purge_step)
    for step in (5, 10):
        if step >= purge_step:
            writer.add_scalar("loss", value, step)
    writer.close()


def read(directory: Path) -> list[tuple[int, float]]:
    seen = EventAccumulator(str(directory)).Reload()
    return [(event.step, event.value) for event in seen.Scalars("loss")]


def test_of_two_files_within_a_second_the_newer_has_the_last_word(tmp_path: Path, clock: list[float]) -> None:
    for value in (1.0, 2.0, 3.0):
        write(tmp_path, value)
    assert read(tmp_path) == [(5, 3.0), (10, 3.0)]
    assert clock == [MOMENT, 1_800_000_001, 1_800_000_002]


def test_what_lies_before_the_step_to_purge_from_stays(tmp_path: Path, clock: list[float]) -> None:
    write(tmp_path, 1.0)
    write(tmp_path, 2.0, purge_step=6)
    assert read(tmp_path) == [(5, 1.0), (10, 2.0)]
    assert len(clock) == 2


@pytest.mark.parametrize("second", [1_799_999_999, 1_800_000_001, 1_900_000_000])
def test_only_a_file_of_this_very_second_is_waited_for(tmp_path: Path, clock: list[float], second: int) -> None:
    (tmp_path / f"events.out.tfevents.{second}.host.1.0").touch()
    (tmp_path / "events.out.tfevents.strange").touch()
    write(tmp_path, 1.0)
    assert clock == [MOMENT]


def test_a_sleep_that_ends_early_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [MOMENT]
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += min(seconds, 0.5)

    monkeypatch.setattr(events, "time", SimpleNamespace(time=lambda: now[0], sleep=sleep))
    (tmp_path / f"events.out.tfevents.{int(MOMENT)}.host.1.0").touch()
    write(tmp_path, 1.0)
    assert slept == [0.75, 0.25]


def test_nothing_is_written_where_there_are_to_be_no_events(tmp_path: Path) -> None:
    writer = NoEvents(str(tmp_path), purge_step=1)
    writer.add_scalar("loss", 1.0, 5)
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []
