"""A tracker for runs of days: figures or pictures that cannot be written are told, and cost nothing else."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from cifargan.errors import UserError
from cifargan.images import save_png
from cifargan.runs.directory import RunDirectory
from cifargan.training.events import Events, EventWriter
from cifargan.training.loggers import Logger
from cifargan.training.tracking import Tracker

log = logging.getLogger(__name__)


class SturdyTracker(Tracker):
    """Goes on when the file system refuses, says so once for each kind of file, and tries again each time.

    Args:
        directory: as of `Tracker`.
        steps: as of `Tracker`.
        first_step: as of `Tracker`.
        events: as of `Tracker`.
        loggers: as of `Tracker`; what they raise beside OSError and UserError is a bug.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        steps: int,
        first_step: int = 0,
        events: Events = EventWriter,
        loggers: Sequence[Logger] = (),
    ) -> None:
        super().__init__(directory, steps=steps, first_step=first_step, events=events, loggers=loggers)
        self.failing: set[str] = set()
        self._waiting: list[str] = []
        self._hook = threading.excepthook

    def __enter__(self) -> Self:
        super().__enter__()
        self._hook, threading.excepthook = threading.excepthook, self._note_thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()
        self.redirect.__exit__(kind, error, traceback)
        self._attempt("TensorBoard's events", self.writer.close)
        threading.excepthook = self._hook
        self._attempt("metrics.jsonl", self._write_waiting)
        with suppress(OSError):
            self.metrics.close()
        self._tell_loggers(lambda logger: logger.close())

    def _tell_loggers(self, what: Callable[[Logger], None]) -> None:
        for logger in self.loggers:
            self._attempt(logger.what, lambda logger=logger: what(logger))  # type: ignore[misc]

    def _note_thread(self, what: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread passes its error on to the next call, which tells it; its own traceback is noise."""
        if type(what.thread).__name__ != "_AsyncWriterThread" or not isinstance(what.exc_value, OSError):
            self._hook(what)

    def rewind(self, step: int) -> None:
        """As of `Tracker`."""
        self._waiting = []
        self._attempt("metrics.jsonl", lambda: self._reopen(lambda: self._forget_after(step)))
        self._attempt("TensorBoard's events", lambda: self._new_writer(step))
        self._went_back(step)

    def text(self, name: str, text: str, step: int = 0) -> None:
        """As of `Tracker`."""
        self._events(step, lambda: super(SturdyTracker, self).text(name, text, step))

    def hyperparameters(self, config: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """As of `Tracker`."""
        self._events(self.steps, lambda: super(SturdyTracker, self).hyperparameters(config, scores))

    def image(self, name: str, image: Tensor, step: int, *, file: str | None = None) -> None:
        """As of `Tracker`."""
        self._events(step, lambda: self.writer.add_image(name, image, step))
        path = self.directory.samples / (file or f"step_{step:09d}.png")
        self._attempt("pictures", lambda: save_png(image, path))

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._events(step, lambda: super(SturdyTracker, self)._add_scalars(step, values))

    def _write_line(self, line: str) -> None:
        self._waiting.append(line)
        self._attempt("metrics.jsonl", self._write_waiting)

    def _write_waiting(self) -> None:
        """Write the lines that are not written yet, each as a whole: half a line is cut off again."""
        path = self.directory.metrics
        if not path.exists():
            self._reopen(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        while self._waiting:
            size = path.stat().st_size
            try:
                self.metrics.write(self._waiting[0])
                self.metrics.flush()
            except OSError:
                # What stays in the file's own buffer must not be written a second time.
                self._reopen(lambda size=size: _cut(path, size))  # type: ignore[misc]
                raise
            del self._waiting[0]

    def _reopen(self, between: Callable[[], None]) -> None:
        with suppress(OSError):
            self.metrics.close()
        between()
        self.metrics = self.directory.metrics.open("a", encoding="utf-8")

    def _events(self, step: int, write: Callable[[], None]) -> None:
        """Write to TensorBoard. Its thread ends at the first error, so another one takes over the next time."""

        def attempt() -> None:
            if "TensorBoard's events" in self.failing or not self.directory.path.exists():
                self._new_writer(step - 1)
            write()
            self.writer.flush()

        self._attempt("TensorBoard's events", attempt)

    def _new_writer(self, step: int) -> None:
        with suppress(Exception):
            self.writer.close()
        self.writer = self.events(str(self.directory.path), purge_step=step + 1)

    def _attempt(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, UserError) as error:
            if what not in self.failing:
                reason = getattr(error, "strerror", None) or str(error)
                log.warning(
                    "%s of %s cannot be written (%s): training goes on, and tries again each time",
                    what,
                    self.directory.path,
                    reason,
                )
            self.failing.add(what)
        else:
            if what in self.failing:
                self.failing.remove(what)
                log.warning("%s of %s can be written again", what, self.directory.path)


def _cut(path: Path, size: int) -> None:
    with suppress(OSError), path.open("r+b") as file:
        file.truncate(size)
