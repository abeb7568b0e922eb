"""Progress: a bar on a terminal, lines in a log."""

import io
import logging
import sys
import time

import pytest

from cifargan.progress import Progress


def test_a_log_file_gets_lines_with_rate_and_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), Progress(100, label="scoring", unit="image") as shown:
        for _ in range(4):  # at 5, 20, 25 and 40 seconds: too soon, a line, too soon, the end
            shown.update(25)
    assert caplog.messages == ["scoring: 50 of 100 images, 2.5 images/s, 00:20 left"]


def test_long_work_makes_ever_fewer_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO), Progress(4000, label="scoring", unit="image") as shown:
        for _ in range(3999):
            shown.update(1)
    assert 20 < len(caplog.messages) < 60


def test_a_terminal_gets_a_bar_and_no_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stderr)
    with caplog.at_level(logging.INFO), Progress(2, label="scoring", unit="image") as shown:
        shown.update(1)
    assert "scoring" in stderr.getvalue()
    assert caplog.messages == []
