"""Ctrl-C, SIGTERM and a scheduler's notice: stop after the step in hand, with everything saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from cifargan import parallel

# What a scheduler is told to send before a job's time is up (Slurm's --signal); submitit asks for SIGUSR2. Not on Windows.
NOTICES = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
STOPS = (signal.SIGINT, signal.SIGTERM, *NOTICES)


class InterruptedRunError(Exception):
    """A run was asked to stop and did so with a checkpoint written.

    Attributes:
        signal: the number of the signal; the process exits with 128 + signal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number

    def __reduce__(self) -> tuple[Any, ...]:
        """How one process hands it on to another."""
        return type(self), (self.signal, str(self))


class Interruption:
    """While entered, turns each of `STOPS` into a request that the loop reads between steps.

    The second request of the same kind is not caught: it stops the process at once. One process of several hears of
    each request twice, from the terminal and from whoever started it, so there the second counts as the first.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        self.requested = number
        if parallel.processes() == 1:
            end_at_next(number)


def end_at_next(number: int) -> None:
    """Have the next signal of this kind end the process at once: Ctrl-C as Python does, others as the system does."""
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
