"""Where the run log goes: metrics.jsonl, image files, metrics.csv, TensorBoard. An own logger is a class like these."""

import csv
import io
import json
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.tensorboard import summary

from cifargan.evaluation.records import Record
from cifargan.files import write_atomically
from cifargan.images import save_png
from cifargan.runs.directory import RunDirectory


class Logger:
    """Takes what a run reports. A subclass overrides what it keeps; this class keeps nothing.

    Args:
        directory: the run's folder.
        config: the run's settings.

    Attributes:
        what: its name in messages.
        is_file: whether it writes files in the run's folder. It is then called again after an OSError; another logger
            is left out after its first error.
    """

    what = "an own logger"
    is_file = False

    def __init__(self, directory: RunDirectory, config: Mapping[str, Any]) -> None:
        self.directory = directory
        self.config = config

    def open(self, step: int) -> None:
        """Called first. The run starts from `step`: what an earlier session logged after it is to be dropped."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take scalars, which may be NaN or infinite."""

    def records(self, step: int, records: Sequence[Record], values: Mapping[str, float]) -> None:  # noqa: ARG002
        """Take scores: the values are among `values`, `records` say how they were measured."""
        self.scalars(step, values)

    def hyperparameters(self, config: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Take the settings and the final scores."""

    def text(self, name: str, text: str) -> None:
        """Take a text."""

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Take an image (3, H, W) uint8."""

    def rewind(self, step: int) -> None:
        """The run went back to `step`: what was logged after it is to be dropped."""
        self.open(step)

    def close(self) -> None:
        """Called last."""


class JSONLines(Logger):
    """`metrics.jsonl`: a JSON object for each log point; NaN and infinite values are null. It is always written."""

    what = "metrics.jsonl"
    is_file = True
    waiting = ""  # lines that could not be written yet

    def open(self, step: int) -> None:
        """Drop the lines after `step`, and a line that a crash has cut off."""
        self.waiting = ""
        if not self.directory.metrics.exists():
            return
        with self.directory.metrics.open("r+b") as file:
            end = 0
            for line in file:
                if not line.endswith(b"\n") or _step_of(line) > step:
                    break
                end += len(line)
            file.truncate(end)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        self._write({"step": step, "time": time.time(), **dict.fromkeys(values), **finite(values)})

    def records(self, step: int, records: Sequence[Record], values: Mapping[str, float]) -> None:
        """Write a line that also holds the records."""
        line = {"step": step, "time": time.time(), **dict.fromkeys(values), **finite(values)}
        self._write({**line, "records": [record.flat() for record in records]})

    def _write(self, line: dict[str, Any]) -> None:
        self.waiting += json.dumps(line) + "\n"
        self.close()

    def close(self) -> None:
        """Write the lines that are waiting, all or none."""
        path = self.directory.metrics
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(self.waiting)
        except OSError:
            with suppress(OSError):
                os.truncate(path, size)
            raise
        self.waiting = ""


class ImageFiles(Logger):
    """PNG files under `samples/`: `step_N.png`, and `NAME.png` for an image of step 0."""

    what = "samples"
    is_file = True

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Write a PNG."""
        save_png(image, self.directory.samples / (f"step_{step:09d}.png" if step else f"{name}.png"))


class CSVTable(Logger):
    """`metrics.csv`: metrics.jsonl as a table with a column for each name; an empty cell is no finite value."""

    what = "metrics.csv"
    is_file = True
    columns: Sequence[str] = ()  # of the file; none: it has to be rewritten

    def open(self, step: int) -> None:  # noqa: ARG002 - metrics.jsonl is cut already
        """Write the whole table from metrics.jsonl; later rows are appended."""
        self.columns = ()
        source = self.directory.metrics
        lines = source.read_text(encoding="utf-8").splitlines() if source.exists() else []
        # The details of scores, a list, are in metrics.jsonl alone.
        rows = [{k: v for k, v in json.loads(line).items() if not isinstance(v, list)} for line in lines]
        columns = list(dict.fromkeys(["step", "time", *(name for row in rows for name in row)]))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.directory.path / "metrics.csv", table.getvalue().encode())
        self.columns = columns

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row, or rewrite the table where there is a new name or a row could not be written."""
        path = self.directory.path / "metrics.csv"
        columns, self.columns = self.columns, ()
        if not path.exists() or not values.keys() <= set(columns):
            self.open(step)
            return
        with path.open("a", encoding="utf-8", newline="") as file:
            row = {"step": step, "time": time.time(), **finite(values)}
            csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
        self.columns = columns


class TensorBoard(Logger):
    """TensorBoard's event files: scalars, images, the settings as a text, a row of its table of hyper-parameters.

    Each session writes a file of its own, whose first event drops what older files say of later steps. Events are
    written at once and not in the thread of `SummaryWriter`, so that an error is raised here.
    """

    what = "TensorBoard's events"
    is_file = True
    file: BinaryIO | None = None

    def open(self, step: int) -> None:
        """Begin a new file, which replaces what older files say of the steps after `step`."""
        self.close()
        self._begin(step)

    def _begin(self, step: int) -> BinaryIO:
        # TensorBoard reads the files in the order of the seconds in their names.
        names = [path.name.split(".")[3] for path in self.directory.path.glob("events.out.tfevents.*.*")]
        second = max([int(time.time()), *(int(name) + 1 for name in names if name.isdecimal())])
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
        self.directory.path.mkdir(parents=True, exist_ok=True)
        self.file = file = (self.directory.path / name).open("wb")
        self._write(step + 1, file_version="brain.Event:2")
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))
        return file

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write an event for each."""
        for name, value in values.items():
            self._write(step, summary=summary.scalar(name, value))  # type: ignore[no-untyped-call]

    def hyperparameters(self, config: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Write the run's row of the table."""
        for part in summary.hparams(flat(config), dict(scores)):  # type: ignore[no-untyped-call]
            self._write(0, summary=part)

    def text(self, name: str, text: str) -> None:
        """Write a text as a block of code."""
        self._write(0, summary=summary.text(name, f"```\n{text}\n```"))  # type: ignore[no-untyped-call]

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Write an image."""
        self._write(step, summary=summary.image(name, image, dataformats="CHW"))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the file."""
        file, self.file = self.file, None
        if file is not None:
            file.close()

    def _write(self, step: int, **content: Any) -> None:
        file = self.file or self._begin(step - 1)
        event = Event(step=step, wall_time=time.time(), **content).SerializeToString()
        try:
            RecordWriter(file).write(event)
            file.flush()
        except OSError:
            # Half an event ends a file for its readers: the next event begins another file.
            with suppress(OSError):
                self.close()
            raise


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values that are neither NaN nor infinite."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | int | bool]:
    """Settings as `a.b.c: value`, each of a type that a table of hyper-parameters takes."""
    found: dict[str, str | float | int | bool] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str | float | int) else str(value)
    return found


def _step_of(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinite where the line is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
