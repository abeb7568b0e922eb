"""Ctrl-C, SIGTERM, a lost terminal, a scheduler's notice: stop after the step in hand, with everything saved."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from cifargan import distributed

# Windows has none of these. A scheduler can be asked to send a notice before a job's time is up (Slurm's --signal; submitit asks
# for SIGUSR2). A terminal that is closed, or a connection that is lost, is a hangup.
NOTICES = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
HANGUPS = tuple(getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name))
STOPS = (signal.SIGINT, signal.SIGTERM, *HANGUPS, *NOTICES)


Handler = Callable[[int, FrameType | None], object]
Handlers = dict[int, Any]  # of each signal, what it did before


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
    each request twice, from the terminal and from whoever started it, so there the second counts as the first; and so
    it does of a hangup, which the system and the shell both tell of.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: Handlers = {}

    def __enter__(self) -> Self:
        self._previous = caught_by(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        put_back(self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        self.requested = number
        if distributed.world_size() == 1 and number not in HANGUPS:
            end_at_next(number)


def caught_by(handler: Handler) -> Handlers:
    """Have each of `STOPS` call `handler`, but for a hangup that is to be ignored, as under `nohup`.

    Returns:
        What they did before; nothing outside of the main thread, where no signals arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    ignored = {number for number in HANGUPS if signal.getsignal(number) == signal.SIG_IGN}
    return {number: signal.signal(number, handler) for number in STOPS if number not in ignored}


def put_back(handlers: Handlers) -> None:
    """Undo `caught_by`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def end_at_next(number: int) -> None:
    """Have the next signal of this kind end the process at once: Ctrl-C as Python does, others as the system does."""
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
