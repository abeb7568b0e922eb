"""The run log: passes a run's scalars, scores, images and progress on to its loggers and to the terminal."""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cifargan.errors import UserError
from cifargan.evaluation.records import Record, scalars
from cifargan.runs.directory import RunDirectory
from cifargan.training.loggers import Logger

log = logging.getLogger(__name__)


class RunLog:
    """What a run reports while it trains. A logger that fails costs a warning, not the run.

    Args:
        directory: the run's folder.
        loggers: where scalars, scores, images and texts go; none on other ranks than zero.
        steps: the step at which the training ends; 0: no progress is shown.
        first_step: the step that this session starts from. Loggers drop what an earlier session logged after it.
    """

    def __init__(
        self, directory: RunDirectory, loggers: Sequence[Logger] = (), *, steps: int = 0, first_step: int = 0
    ) -> None:
        self.directory = directory
        self.loggers = list(loggers)
        self.steps = steps
        self.first_step = first_step
        self.began = time.monotonic()
        self.opened = False
        self.failing: set[Logger] = set()
        self.redirect = logging_redirect_tqdm()
        # A bar on a terminal, lines in a log file.
        self.plain = not sys.stderr.isatty()
        disable = self.plain or steps == 0
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, disable=disable)

    def __enter__(self) -> Self:
        self.redirect.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()
        self.redirect.__exit__(kind, error, traceback)
        self._each(lambda logger: logger.close())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars under one step."""
        self._each(lambda logger: logger.scalars(step, values))

    def records(self, step: int, records: Sequence[Record], more: Mapping[str, float]) -> None:
        """Log scores, and more scalars beside them."""
        values = {**scalars(records), **more}
        self._each(lambda logger: logger.records(step, records, values))

    def hyperparameters(self, config: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Log a run's settings and final scores."""
        self._each(lambda logger: logger.hyperparameters(config, scores))

    def text(self, name: str, text: str) -> None:
        """Log a text."""
        self._each(lambda logger: logger.text(name, text))

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Log an image (3, H, W) uint8."""
        self._each(lambda logger: logger.image(name, image, step))

    def rewind(self, step: int) -> None:
        """Drop everything after `step`, from which the run continues."""
        self._each(lambda logger: logger.rewind(step))
        self.began, self.first_step = time.monotonic(), step
        self.advance(step)

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        self.bar.update(step - self.bar.n)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show some values: beside the bar, or with speed and time left as a line."""
        shown = {name: f"{value:.3g}" for name, value in values.items()}
        self.bar.set_postfix(shown, refresh=False)
        if self.plain and self.steps:
            rate = (step - self.first_step) / max(time.monotonic() - self.began, 1e-9)
            left = tqdm.format_interval((self.steps - step) / rate)
            figures = "  ".join(f"{name} {value}" for name, value in shown.items())
            log.info("step %d/%d  %.3g steps/s  %s left  %s", step, self.steps, rate, left, figures)

    def _each(self, call: Callable[[Logger], None]) -> None:
        if not self.opened:
            # Not before: until then the run may turn out not to continue from its checkpoint.
            self.opened = True
            self._each(lambda logger: logger.open(self.first_step))
        for logger in self.loggers.copy():
            try:
                call(logger)
            except Exception as error:
                if logger.is_file and not isinstance(error, OSError | UserError):
                    raise
                self._report_failure(logger, error)
            else:
                if logger in self.failing:
                    self.failing.remove(logger)
                    log.warning("%s of %s can be written again", logger.what, self.directory.path)

    def _report_failure(self, logger: Logger, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or (str(error) or repr(error)).splitlines()[0]
        if not logger.is_file:
            # A service may make each call wait for its network.
            self.loggers.remove(logger)
            log.warning("%s has failed (%s): the run continues without it; see metrics.jsonl", logger.what, reason)
        elif logger not in self.failing:
            self.failing.add(logger)
            where = f"{logger.what} of {self.directory.path}"
            log.warning("%s cannot be written (%s): the run continues, and tries again each time", where, reason)


class Throughput:
    """Measures steps a second from one log point to the next, without evaluations."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        """Start, or resume, at `step`."""
        self.started = time.monotonic()
        self.paused = 0.0  # seconds of evaluations
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measure from `step` on, to which the run went back."""
        self.lap_began, self.lap_step = time.monotonic(), step

    def lap(self, step: int) -> float:
        """Steps a second since the last call."""
        seconds, steps = time.monotonic() - self.lap_began, step - self.lap_step
        self.restart(step)
        return steps / max(seconds, 1e-9)

    def pause(self, seconds: float) -> None:
        """Leave out the last `seconds`."""
        self.paused += seconds
        self.lap_began += seconds

    @property
    def paused_share(self) -> float:
        """The share of the time since the start that was left out."""
        return self.paused / max(time.monotonic() - self.started, 1e-9)
