"""Show the progress of long work: a bar on a terminal, lines in a log file."""

import logging
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
SHARE_BETWEEN_LINES = 0.2  # of the elapsed time, so that hours of work do not log hundreds of lines

_silent = False


def silence() -> None:
    """Show nothing in this process from now on, because another rank shows the same."""
    global _silent
    _silent = True


class Progress:
    """Shows the count, rate and remaining time of work whose size is known.

    Args:
        total: Number of units.
        label: What is being done.
        unit: What is counted, in the singular.
    """

    def __init__(self, total: int, *, label: str, unit: str) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done = 0
        self.started = self.last_line = time.monotonic()
        # disable=None: no bar if standard error is not a terminal.
        self.bar = tqdm(total=total, desc=label, unit=unit, leave=False, dynamic_ncols=True, disable=_silent or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def update(self, n: int) -> None:
        """Count `n` more units."""
        self.done += n
        self.bar.update(n)
        now = time.monotonic()
        elapsed = now - self.started
        pause = max(SECONDS_BETWEEN_LINES, SHARE_BETWEEN_LINES * elapsed)
        if self.bar.disable and not _silent and self.done < self.total and now - self.last_line > pause:
            rate = self.done / elapsed
            left = tqdm.format_interval((self.total - self.done) / rate)
            count = f"{self.done} of {self.total} {self.unit}s, {rate:.3g} {self.unit}s/s"
            log.info("%s: %s, %s left", self.label, count, left)
            self.last_line = now
