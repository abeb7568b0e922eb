"""Ctrl-C and SIGTERM: stop after the step in hand, with everything saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from cifargan import parallel


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
    """While entered, turns SIGINT and SIGTERM into a request that the loop reads between steps.

    The second request of the same kind is not caught: it stops the process at once. One process of several hears of
    each request twice, from the terminal and from whoever started it, so there the second counts as the first.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
