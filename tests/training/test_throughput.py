"""Steps a second, with evaluations left out."""

import time

import pytest

from cifargan.training.throughput import Throughput


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_each_lap_has_its_own_rate(clock: list[float]) -> None:
    pace = Throughput()
    clock[0] += 50  # before the start nothing counts
    pace.start(1000)
    clock[0] += 10
    assert pace.lap(1020) == 2.0
    clock[0] += 5
    assert pace.lap(1040) == 4.0


def test_what_was_no_training_is_left_out(clock: list[float]) -> None:
    pace = Throughput()
    pace.start(0)
    clock[0] += 10
    pace.pause(6.0)
    assert pace.paused_share == 0.6
    assert pace.lap(8) == 2.0
    clock[0] += 10
    assert pace.lap(18) == 1.0  # the pause was the last lap's
    assert pace.paused_share == 0.3


def test_a_run_that_went_back_counts_from_there(clock: list[float]) -> None:
    pace = Throughput()
    pace.start(0)
    clock[0] += 10
    pace.restart(40)
    clock[0] += 10
    assert pace.lap(60) == 2.0


def test_no_time_is_no_division_by_zero(clock: list[float]) -> None:
    pace = Throughput()
    assert pace.lap(0) == 0.0
    assert pace.paused_share == 0.0
