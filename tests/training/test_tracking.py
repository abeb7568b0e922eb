"""What a run says about itself: lines of JSON, TensorBoard events, pictures, progress."""

import io
import json
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from cifargan.runs.directory import RunDirectory
from cifargan.training.tracking import Tracker, _duration


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def lines(directory: RunDirectory) -> list[dict[str, Any]]:
    text = directory.metrics.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def events(directory: RunDirectory) -> EventAccumulator:
    return EventAccumulator(str(directory.path)).Reload()


def test_scalars_are_in_both_places(directory: RunDirectory) -> None:
    with Tracker(directory, steps=20) as tracker:
        tracker.scalars(5, {"loss/generator": 0.5, "loss/discriminator": 1.25})
        # Readable while the run goes on.
        (line,) = lines(directory)
        tracker.scalars(10, {"loss/generator": 0.25})
    assert line.pop("time") > 1.7e9
    assert line == {"step": 5, "loss/generator": 0.5, "loss/discriminator": 1.25}
    seen = events(directory)
    assert [(event.step, event.value) for event in seen.Scalars("loss/generator")] == [(5, 0.5), (10, 0.25)]
    assert [(event.step, event.value) for event in seen.Scalars("loss/discriminator")] == [(5, 1.25)]


def test_what_is_no_number_is_null_in_json_and_itself_in_tensorboard(directory: RunDirectory) -> None:
    with Tracker(directory, steps=20) as tracker:
        tracker.scalars(5, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    (line,) = lines(directory)
    assert [line[name] for name in "abcd"] == [None, None, None, 1.0]
    assert math.isnan(events(directory).Scalars("a")[0].value)


def test_a_picture_is_a_png_and_an_event(directory: RunDirectory) -> None:
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Tracker(directory, steps=20) as tracker:
        tracker.image("samples", image, 1000)
        tracker.image("reals", image.flip(2), 0, file="reals.png")
    for name, expected in (("step_000001000.png", image), ("reals.png", image.flip(2))):
        with Image.open(directory.samples / name) as stored:
            assert np.array_equal(np.array(stored), expected.permute(1, 2, 0).numpy())
    (event,) = events(directory).Images("samples")
    assert event.step == 1000
    with Image.open(io.BytesIO(event.encoded_image_string)) as stored:
        assert np.array_equal(np.array(stored), image.permute(1, 2, 0).numpy())


def test_the_configuration_is_a_text(directory: RunDirectory) -> None:
    with Tracker(directory, steps=20) as tracker:
        tracker.text("config", "loss:\n  name: hinge")
    (event,) = events(directory).Tensors("config/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "```\nloss:\n  name: hinge\n```"


def test_a_resumed_run_tells_no_step_twice(directory: RunDirectory) -> None:
    with Tracker(directory, steps=40) as tracker:
        for step in (5, 10, 15, 20):
            tracker.scalars(step, {"loss/generator": float(step)})
    kept = directory.metrics.read_text().splitlines()[:2]
    with directory.metrics.open("a") as file:
        file.write('{"step": 25, "loss/gen')  # the process died here
    with Tracker(directory, steps=40, first_step=12) as tracker:
        tracker.scalars(15, {"loss/generator": -15.0})
    assert directory.metrics.read_text().splitlines()[:2] == kept
    assert [(line["step"], line["loss/generator"]) for line in lines(directory)] == [(5, 5), (10, 10), (15, -15)]
    seen = [(event.step, event.value) for event in events(directory).Scalars("loss/generator")]
    assert seen == [(5, 5.0), (10, 10.0), (15, -15.0)]


def test_a_run_that_died_before_its_first_checkpoint_starts_over(directory: RunDirectory) -> None:
    for value in (1.0, 2.0):
        with Tracker(directory, steps=40) as tracker:
            tracker.scalars(5, {"loss/generator": value})
            tracker.scalars(10, {"loss/generator": value})
    assert [(line["step"], line["loss/generator"]) for line in lines(directory)] == [(5, 2.0), (10, 2.0)]
    seen = [(event.step, event.value) for event in events(directory).Scalars("loss/generator")]
    assert seen == [(5, 2.0), (10, 2.0)]


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[1]\n", b'{"time": 3}\n', b"null\n", b"\n", b'{"step": 3, "a'])
def test_lines_that_are_none_are_dropped(directory: RunDirectory, damage: bytes) -> None:
    directory.metrics.write_bytes(b'{"step": 1}\n' + damage)
    with Tracker(directory, steps=40, first_step=3) as tracker:
        tracker.scalars(4, {})
    assert [line["step"] for line in lines(directory)] == [1, 4]


def test_a_whole_line_that_lost_its_end_does_not_run_into_the_next(directory: RunDirectory) -> None:
    directory.metrics.write_bytes(b'{"step": 1}\n{"step": 2}')
    with Tracker(directory, steps=40, first_step=2) as tracker:
        tracker.scalars(3, {})
    assert [line["step"] for line in lines(directory)] == [1, 2, 3]


VALUES = {"D": 1.23456, "G": 0.5, "real": 0.75}


def test_without_a_terminal_there_are_lines_with_rate_and_time_left(
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now, time=lambda: 0.0)
    monkeypatch.setattr("cifargan.training.tracking.time", clock)
    with Tracker(directory, steps=300, first_step=100) as tracker:
        now += 20.0
        tracker.advance(150)
        tracker.report(150, VALUES)
    # 50 steps in 20 s are 2.5 steps/s, and 150 are left.
    line = "step 150/300  2.5 steps/s  01:00 left  D 1.23  G 0.5  real 0.75"
    estimate = "50 steps: 2.5 steps/s, about 1 min to go"
    assert [record.getMessage() for record in caplog.records] == [line, estimate]
    assert capsys.readouterr().err == f"{line}\n{estimate}\n"  # and no bar


def test_the_time_to_go_is_told_once_when_a_rate_means_something(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, time=lambda: 0.0)
    monkeypatch.setattr("cifargan.training.tracking.time", clock)
    with Tracker(directory, steps=40_000, first_step=1000) as tracker:
        for step in (1049, 1050, 1051, 1500):
            now += 10.0
            tracker.report(step, {})
        tracker.rewind(1000)
        tracker.report(1060, {})
    (line,) = [record.getMessage() for record in caplog.records if "to go" in record.getMessage()]
    # 50 steps in 20 s, and 38,950 are left.
    assert line == "50 steps: 2.5 steps/s, about 4 h 20 min to go"


def test_steps_that_were_done_in_vain_are_not_in_the_rate(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, time=lambda: 0.0)
    monkeypatch.setattr("cifargan.training.tracking.time", clock)
    with Tracker(directory, steps=200) as tracker:
        now += 1000.0
        tracker.rewind(20)
        tracker.report(60, {})
        now += 10.0
        tracker.report(100, {})
        tracker.report(200, {})
    lines = [record.getMessage() for record in caplog.records if "to go" in record.getMessage()]
    assert lines == ["80 steps: 8 steps/s, about 12 s to go"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3569.0, "59 min"), (3571.0, "1 h 0 min")),
        *((12_900.0, "3 h 35 min"), (86_399.0, "1 d 0 h"), (3 * 86_400.0 + 7300.0, "3 d 2 h")),
    ],
)
def test_times_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_on_a_terminal_there_is_a_bar_and_no_line_but_the_time_to_go(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    caplog.set_level(logging.INFO)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Tracker(directory, steps=300, first_step=100) as tracker:
        tracker.advance(150)
        tracker.report(150, VALUES)
    last = screen.getvalue().split("\r")[-1]
    assert "150/300" in last
    assert "D=1.23, G=0.5, real=0.75" in last
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("50 steps: ")
