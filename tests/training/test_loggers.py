"""The loggers that write files: what they write, after a resume, a rollback, a crash and a full disk."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from cifargan.runs.directory import RunDirectory
from cifargan.training import loggers
from cifargan.training.log import RunLog
from cifargan.training.loggers import CSVTable, ImageFiles, JSONLines, TensorBoard, flat

Values = list[tuple[int, float]]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


@contextmanager
def session(directory: RunDirectory, first_step: int = 0) -> Iterator[RunLog]:
    kinds = (JSONLines, ImageFiles, CSVTable, TensorBoard)
    with RunLog(directory, [kind(directory, {}) for kind in kinds], first_step=first_step) as log:
        yield log


def lines(directory: RunDirectory) -> list[dict[str, Any]]:
    text = directory.metrics.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def rows(directory: RunDirectory) -> list[dict[str, str]]:
    with (directory.path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(directory: RunDirectory) -> EventAccumulator:
    return EventAccumulator(str(directory.path)).Reload()


def in_jsonl(directory: RunDirectory) -> Values:
    return [(line["step"], line["a"]) for line in lines(directory)]


def in_csv(directory: RunDirectory) -> Values:
    return [(int(row["step"]), float(row["a"])) for row in rows(directory)]


def in_tensorboard(directory: RunDirectory) -> Values:
    return [(event.step, event.value) for event in events(directory).Scalars("a")]


EVERYWHERE = pytest.mark.parametrize("read", [in_jsonl, in_csv, in_tensorboard])


def test_scalars_and_what_is_not_finite(directory: RunDirectory) -> None:
    with session(directory) as log:
        log.scalars(5, {"a": 0.5, "b, c": math.nan})
        (line,) = lines(directory)  # readable while the run continues
        log.scalars(10, {"a": 1.5, "d": math.inf})
    assert line.pop("time") > 1.7e9
    assert line == {"step": 5, "a": 0.5, "b, c": None}
    assert [list(row.values())[2:] for row in rows(directory)] == [["0.5", "", ""], ["1.5", "", ""]]
    assert list(rows(directory)[0]) == ["step", "time", "a", "b, c", "d"]
    assert in_tensorboard(directory) == [(5, 0.5), (10, 1.5)]
    assert math.isnan(events(directory).Scalars("b, c")[0].value)


def test_a_row_with_known_names_is_appended(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(directory) as log:
        log.scalars(5, {"a": 0.5})
        monkeypatch.setattr(loggers, "write_atomically", lambda *_: pytest.fail("rewritten"))
        log.scalars(10, {"a": 1.5})
    assert in_csv(directory) == [(5, 0.5), (10, 1.5)]


def test_an_image_is_a_png_and_an_event(directory: RunDirectory) -> None:
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with session(directory) as log:
        log.image("samples", image, 1000)
        log.image("reals", image.flip(2), 0)
    for name, expected in (("step_000001000.png", image), ("reals.png", image.flip(2))):
        with Image.open(directory.samples / name) as stored:
            assert np.array_equal(np.array(stored), expected.permute(1, 2, 0).numpy())
    (event,) = events(directory).Images("samples")
    assert event.step == 1000
    with Image.open(io.BytesIO(event.encoded_image_string)) as stored:
        assert np.array_equal(np.array(stored), image.permute(1, 2, 0).numpy())


def test_settings_in_tensorboard(directory: RunDirectory) -> None:
    with session(directory) as log:
        log.text("config", "loss:\n  name: hinge")
        log.hyperparameters({"loss": {"name": "hinge"}}, {"fid": 3.0})
    seen = events(directory)
    (event,) = seen.Tensors("config/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "```\nloss:\n  name: hinge\n```"
    content = seen.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"loss.name" in content
    assert b"hinge" in content


@EVERYWHERE
def test_no_step_is_logged_twice_after_a_rollback_a_resume_and_a_crash(
    read: Callable[[RunDirectory], Values], directory: RunDirectory
) -> None:
    with session(directory) as log:
        for step in (5, 10, 15):
            log.scalars(step, {"a": float(step)})
        log.rewind(10)
        log.scalars(15, {"a": -15.0})
        log.scalars(20, {"a": 20.0})
    assert read(directory) == [(5, 5.0), (10, 10.0), (15, -15.0), (20, 20.0)]
    with directory.metrics.open("a") as file:
        file.write('{"step": 25, "a')  # the process died here
    with session(directory, first_step=12) as log:
        log.scalars(15, {"a": 15.5})
    assert read(directory) == [(5, 5.0), (10, 10.0), (15, 15.5)]
    with session(directory) as log:  # there was no checkpoint
        log.scalars(5, {"a": 1.0})
    assert read(directory) == [(5, 1.0)]


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[1]\n", b'{"time": 3}\n', b"null\n", b"\n", b'{"step": 3, "a'])
def test_a_damaged_line_is_dropped(directory: RunDirectory, damage: bytes) -> None:
    directory.metrics.write_bytes(b'{"step": 1}\n' + damage)
    with session(directory, first_step=3) as log:
        log.scalars(4, {})
    assert [line["step"] for line in lines(directory)] == [1, 4]


@EVERYWHERE
def test_after_a_full_disk(
    read: Callable[[RunDirectory], Values],
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file may take half of what is written before the error."""

    class Full(io.StringIO):
        def __init__(self, file: Any) -> None:
            super().__init__()
            self.file = file

        def write(self, content: Any) -> int:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self.file.close()

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        return Full(real(path, *arguments, **options))

    real = Path.open
    with session(directory) as log:
        log.scalars(1, {"a": 1.0})
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", full)
            patched.setattr(loggers, "RecordWriter", Full)
            log.scalars(2, {"a": 2.0})
            log.scalars(3, {"a": 3.0})
        assert in_jsonl(directory) == [(1, 1.0)]
        log.scalars(4, {"a": 4.0})
    # TensorBoard alone does not get the values later.
    late = [] if read is in_tensorboard else [(2, 2.0), (3, 3.0)]
    assert read(directory) == [(1, 1.0), *late, (4, 4.0)]
    failed = ("metrics.jsonl", "metrics.csv", "TensorBoard's events")
    messages = [record.getMessage() for record in caplog.records]
    for what in failed:
        assert [what in message for message in messages].count(True) == 2, messages


def test_a_picture_that_cannot_be_written(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory.samples.write_text("a file")
    with session(directory) as log:
        log.image("samples", torch.zeros(3, 4, 4, dtype=torch.uint8), 5)
        directory.samples.unlink()
        log.image("samples", torch.zeros(3, 4, 4, dtype=torch.uint8), 6)
    assert "samples of" in caplog.text
    assert [path.name for path in directory.samples.iterdir()] == ["step_000000006.png"]


def test_of_event_files_within_a_second_the_newer_counts(directory: RunDirectory) -> None:
    for value in (1.0, 2.0, 3.0):
        with session(directory) as log:
            log.scalars(5, {"a": value})
    names = sorted(path.name for path in directory.path.glob("events.*"))
    assert len({name.split(".")[3] for name in names}) == 3
    assert in_tensorboard(directory) == [(5, 3.0)]


def test_settings_become_one_level() -> None:
    config = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": True}
    assert flat(config) == {"a.b.c": 1, "a.d": "None", "e": "[1, 2]", "f": True}
