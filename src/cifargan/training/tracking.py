"""Where a training's scalars, pictures and progress go: metrics.jsonl, loggers, PNG files, the terminal."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cifargan.evaluation.records import Record, scalars
from cifargan.files import write_atomically
from cifargan.images import save_png
from cifargan.runs.directory import RunDirectory
from cifargan.training.events import Events, EventWriter
from cifargan.training.loggers import Logger, flat

log = logging.getLogger(__name__)

# What the progress line shows, short enough for one line.
ESTIMATE_AFTER = 50  # steps, by which a rate means something


class Tracking:
    """What a run says about itself while it trains; of several processes, all but the first say nothing, as this does.

    Args:
        directory: the run's folder.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars under one step."""

    def records(self, step: int, records: Sequence[Record], more: Mapping[str, float]) -> None:
        """Record scores."""

    def hyperparameters(self, config: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Record what the run was and what came of it."""

    def text(self, name: str, text: str, step: int = 0) -> None:
        """Record a text."""

    def image(self, name: str, image: Tensor, step: int, *, file: str | None = None) -> None:
        """Record a picture (3, H, W) uint8."""

    def advance(self, step: int) -> None:
        """Show that `step` is done."""

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the latest figures."""

    def rewind(self, step: int) -> None:
        """Forget what was said after `step`."""


class Tracker(Tracking):
    """Writes everything that a run says about itself while it trains.

    Args:
        directory: the run's folder.
        steps: the step at which the training ends, for the time left.
        first_step: the step that this session starts from; anything logged later by a session that was cut off is
            dropped, so no step is told twice.
        events: what writes TensorBoard's events: `EventWriter`, or `NoEvents`.
        loggers: where scalars go beside those and metrics.jsonl.
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
        super().__init__(directory)
        self.events = events
        self.loggers = loggers
        self.steps = steps
        self.first_step = first_step
        self.started = time.monotonic()
        self.since = (self.started, first_step)
        self.estimated = False
        self._forget_after(first_step)
        self.writer = events(str(directory.path), purge_step=first_step + 1)
        self.metrics = directory.metrics.open("a", encoding="utf-8")
        self.redirect = logging_redirect_tqdm()
        # A bar on a terminal, plain lines in a log file.
        self.plain = not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, disable=self.plain)

    def __enter__(self) -> Self:
        self.redirect.__enter__()
        self._tell_loggers(lambda logger: logger.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()
        self.redirect.__exit__(kind, error, traceback)
        self.writer.close()
        self.metrics.close()
        self._tell_loggers(lambda logger: logger.close())

    def _tell_loggers(self, what: Callable[[Logger], None]) -> None:
        for logger in self.loggers:
            what(logger)

    def _forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that lie after the checkpoint being resumed, or that were cut in half."""
        path = self.directory.metrics
        if not path.exists():
            return
        kept = [line + b"\n" for line in path.read_bytes().splitlines() if _step_of(line) <= step]
        write_atomically(path, b"".join(kept))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars under one step: in TensorBoard, in metrics.jsonl, then with the loggers."""
        self._record(step, values)

    def records(self, step: int, records: Sequence[Record], more: Mapping[str, float]) -> None:
        """Record scores: as scalars among the others, and in metrics.jsonl with all that decides them."""
        self._record(step, {**scalars(records), **more}, records=[record.flat() for record in records])

    def _record(self, step: int, values: Mapping[str, float], **more: Any) -> None:
        self._add_scalars(step, values)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        # JSON has no NaN: a value that is not finite is written as null.
        line = {"step": step, "time": time.time(), **dict.fromkeys(values), **finite, **more}
        self._write_line(json.dumps(line) + "\n")
        self._tell_loggers(lambda logger: logger.scalars(step, finite))

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def _write_line(self, line: str) -> None:
        self.metrics.write(line)
        self.metrics.flush()

    def hyperparameters(self, config: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Record what the run was and what came of it, for TensorBoard's table of hyper-parameters."""
        self.writer.add_hparams(flat(config), dict(scores), run_name=".")

    def text(self, name: str, text: str, step: int = 0) -> None:
        """Record a text in TensorBoard, as a block of code."""
        self.writer.add_text(name, f"```\n{text}\n```", step)

    def image(self, name: str, image: Tensor, step: int, *, file: str | None = None) -> None:
        """Record a picture (3, H, W) uint8, in TensorBoard and under `samples/`."""
        self.writer.add_image(name, image, step)
        save_png(image, self.directory.samples / (file or f"step_{step:09d}.png"))

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        self.bar.update(step - self.bar.n)

    def rewind(self, step: int) -> None:
        """Forget everything after `step`, from which the run goes on once more."""
        self.metrics.close()
        self._forget_after(step)
        self.metrics = self.directory.metrics.open("a", encoding="utf-8")
        self.writer.close()
        self.writer = self.events(str(self.directory.path), purge_step=step + 1)
        self._went_back(step)

    def _went_back(self, step: int) -> None:
        self._tell_loggers(lambda logger: logger.rewind())
        self.since = (time.monotonic(), step)
        self.advance(step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the latest figures: beside the bar, or as a plain line where there is no terminal."""
        shown = {name: f"{value:.3g}" for name, value in values.items()}
        self.bar.set_postfix(shown, refresh=False)
        if self.plain:
            rate = (step - self.first_step) / max(time.monotonic() - self.started, 1e-9)
            left = tqdm.format_interval((self.steps - step) / rate)
            figures = "  ".join(f"{short} {value}" for short, value in shown.items())
            log.info("step %d/%d  %.3g steps/s  %s left  %s", step, self.steps, rate, left, figures)
        self._estimate(step)

    def _estimate(self, step: int) -> None:
        """Say once how long the training will take; at a log point, as its steps are known to be done."""
        then, step_then = self.since
        done = step - step_then
        if self.estimated or done < ESTIMATE_AFTER or step >= self.steps:
            return
        self.estimated = True
        rate = done / max(time.monotonic() - then, 1e-9)
        log.info("%d steps: %.3g steps/s, about %s to go", done, rate, _duration((self.steps - step) / rate))


def _duration(seconds: float) -> str:
    """A time in its two largest units: `2 d 3 h`, `3 h 35 min`, `4 min`, `50 s`."""
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // (24 * 60)
    if seconds < 59.5:
        return f"{round(seconds)} s"
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


def _step_of(line: bytes) -> float:
    """The step of one line of metrics.jsonl; infinite for a line that a crash cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
