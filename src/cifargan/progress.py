"""How far a long piece of work is: a bar on a terminal, plain lines in a log file."""

import logging
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
SHARE_BETWEEN_LINES = 0.2  # of the time gone: hours of work make no hundreds of lines


_silent = False


def silence() -> None:
    """Show nothing in this process from now on: another one shows the same."""
    global _silent
    _silent = True


class Progress:
    """Shows count, rate and time left of work whose size is known.

    Args:
        total: units in all.
        label: what is being done.
        unit: what is counted, in the singular.
    """

    def __init__(self, total: int, *, label: str, unit: str) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done = 0
        self.started = self.last_line = time.monotonic()
        # disable=None: no bar where standard error is no terminal.
        self.bar = tqdm(total=total, desc=label, unit=unit, leave=False, dynamic_ncols=True, disable=_silent or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def update(self, n: int) -> None:
        """Count `n` more."""
        self.done += n
        self.bar.update(n)
        now = time.monotonic()
        gone = now - self.started
        pause = max(SECONDS_BETWEEN_LINES, SHARE_BETWEEN_LINES * gone)
        if self.bar.disable and not _silent and self.done < self.total and now - self.last_line > pause:
            rate = self.done / gone
            left = tqdm.format_interval((self.total - self.done) / rate)
            log.info(
                "%s: %d of %d %ss, %.3g %ss/s, %s left",
                self.label,
                self.done,
                self.total,
                self.unit,
                rate,
                self.unit,
                left,
            )
            self.last_line = now
