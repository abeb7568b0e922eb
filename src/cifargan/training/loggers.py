"""Where a run's figures go beside metrics.jsonl: a table, and whatever else is asked for."""

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cifargan.files import write_atomically
from cifargan.runs.directory import RunDirectory

log = logging.getLogger(__name__)


class Logger:
    """Takes the scalars of a run, each time after they are in metrics.jsonl. This one keeps none.

    Attributes:
        what: what it writes, for a message.
    """

    what = "nothing"

    def open(self) -> None:
        """Called once, before the first scalars."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take scalars, all of them finite, under one step."""

    def rewind(self) -> None:
        """Called when metrics.jsonl has lost its last lines, because the run went back."""

    def close(self) -> None:
        """Called once, after the last scalars."""


class CSVTable(Logger):
    """`metrics.csv`: metrics.jsonl as a table, a row a line; the columns are all names there are, an empty cell no value.

    It follows that file, so it holds the same after a crash, a resume or a rollback. New rows are appended; a new name
    has the table written anew.

    Args:
        directory: the run's folder.
    """

    what = "metrics.csv"

    def __init__(self, directory: RunDirectory) -> None:
        self.source = directory.metrics
        self.path = directory.path / "metrics.csv"
        self.columns: list[str] = []
        self.read = 0  # bytes of the source that are in the table

    def open(self) -> None:
        """Bring the table in line with a metrics.jsonl that a former session left."""
        self.rewind()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002 - they are read from the source
        """Add what is new in metrics.jsonl, which these are the newest of."""
        self._follow()

    def rewind(self) -> None:
        """Write the table anew."""
        self.read = 0
        self._follow()

    def close(self) -> None:
        """Add what had to wait for metrics.jsonl."""
        self._follow()

    def _follow(self) -> None:
        if not self.source.exists():
            return
        if not self.path.exists() or self.source.stat().st_size < self.read:
            self.read = 0
        begin, self.read = self.read, 0  # which it stays if anything below fails: then all is written anew
        rows, end = _rows(self.source, begin)
        new = list(dict.fromkeys(name for row in rows for name in row if name not in self.columns))
        if begin and not new:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines(rows))
        else:
            if begin:
                rows, end = _rows(self.source, 0)
            self.columns = list(dict.fromkeys(["step", "time", *(name for row in rows for name in row)]))
            header = dict(zip(self.columns, self.columns, strict=True))
            write_atomically(self.path, self._lines([header, *rows]).encode())
        self.read = end

    def _lines(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


def _rows(path: Path, begin: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of metrics.jsonl from byte `begin` on, as rows of plain values, and the byte where they end."""
    with path.open("rb") as file:
        file.seek(begin)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    rows = [json.loads(line) for line in whole.splitlines()]
    # The details of scores, a list, are in metrics.jsonl and evaluation.json alone.
    return [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows], begin + len(whole)


class Guarded(Logger):
    """A logger whose failure, of whatever kind, is told once and ends that logger and nothing else.

    Args:
        logger: what may fail. Not tried again: a server that does not answer would hold up every log point.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        self.what = logger.what

    def open(self) -> None:
        """As of the logger."""
        self._attempt(lambda: self.logger.open())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As of the logger."""
        self._attempt(lambda: self.logger.scalars(step, values))

    def rewind(self) -> None:
        """As of the logger."""
        self._attempt(lambda: self.logger.rewind())

    def close(self) -> None:
        """As of the logger."""
        self._attempt(lambda: self.logger.close())

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            # It is somebody else's code, which may raise anything.
            reason = (str(error) or repr(error)).splitlines()[0]
            log.warning(
                "%s has failed (%s): the run goes on without it; its figures are in metrics.jsonl", self.what, reason
            )
            self.logger = Logger()


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | int | bool]:
    """Settings as `a.b.c: value`, each of a type that a table of hyper-parameters takes."""
    found: dict[str, str | float | int | bool] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str | float | int) else str(value)
    return found
