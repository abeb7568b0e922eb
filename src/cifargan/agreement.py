"""Several processes that train one run and must come to the same decisions.

Each carries out the same loop. What only one of them can know (a file, a signal, an error) is told to all, so that none
waits for a message that another has no reason to send. With one process, all here is the work itself.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cifargan import parallel

T = TypeVar("T")

_control: Any = None  # the group for messages on the CPU, beside that of gradients


def join(group: Any) -> None:
    """Have these messages go through a group of their own; None ends that."""
    global _control
    _control = group


def leads() -> bool:
    """Whether this process is the one that writes, says and decides."""
    return parallel.processes() == 1 or dist.get_rank() == 0


def on_first(work: Callable[[], T]) -> T:
    """Have the first process do something by itself; all get its result.

    Raises:
        Exception: whatever `work` raised, in every process.
    """
    if parallel.processes() == 1:
        return work()
    answer: list[Any] = [None, None]
    if leads():
        try:
            with parallel.alone():
                answer[0] = work()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, group=_control)
    if answer[1] is not None:
        raise _known_to_all(answer[1], told=not leads())
    return answer[0]  # type: ignore[no-any-return]


def together(work: Callable[[], T]) -> T:
    """Do something in every process, none of which depends on the others meanwhile.

    Raises:
        Exception: what it raised here, or where it did not, what it raised in the first process where it did.
    """
    if parallel.processes() == 1:
        return work()
    result, error = None, None
    try:
        with parallel.alone():
            result = work()
    except Exception as own:
        error = own
    errors: list[Any] = [None] * parallel.processes()
    dist.all_gather_object(errors, error, group=_control)
    if found := [(rank, other) for rank, other in enumerate(errors) if other is not None]:
        raise _known_to_all(error or found[0][1], told=found[0][0] != dist.get_rank())
    return result  # type: ignore[return-value]


def one_before_others(work: Callable[[], T]) -> T:
    """Do something in every process, but on each machine first in one alone: what it caches is there for the others.

    Raises:
        Exception: as `together`.
    """
    if parallel.processes() == 1:
        return work()
    first = local_rank() == 0
    result = together(lambda: work() if first else None)
    return together(lambda: result if first else work())  # type: ignore[return-value]


def gathered(own: T) -> list[T]:
    """What each process has, in their order, in the first one; an empty list in the others."""
    if parallel.processes() == 1:
        return [own]
    everyone: list[Any] | None = [None] * parallel.processes() if leads() else None
    dist.gather_object(own, everyone, dst=0, group=_control)
    return everyone or []


def local_rank() -> int:
    """Which of the processes on this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if parallel.processes() > 1 else 0


def is_known_to_all(error: BaseException) -> bool:
    """Whether every process met with this error, so that none has to be ended because of it."""
    return getattr(error, "known_to_all", False) is True


def is_told(error: BaseException) -> bool:
    """Whether another process is the one to tell of this error."""
    return getattr(error, "told", False) is True


def note_as_known_to_all(error: Exception) -> None:
    """Say of an error that every process has come to it by itself: the first one tells."""
    _known_to_all(error, told=not leads())


@contextmanager
def met_by_all() -> Iterator[None]:
    """While entered, all processes read the same, and so meet with the same errors: the first one tells."""
    try:
        yield
    except Exception as error:
        note_as_known_to_all(error)
        raise


def _known_to_all(error: Exception, *, told: bool) -> Exception:
    error.known_to_all, error.told = True, told  # type: ignore[attr-defined]
    return error


class Request:
    """A number that any process can bring up, and that all get to know at the same step.

    It takes one step until they do, so that none waits for it.
    """

    def __init__(self) -> None:
        self._number = torch.zeros((), dtype=torch.int64)
        self._sent: Any = None

    def ask(self, own: int | None) -> int | None:
        """What was brought up by the last step; to be called once a step in every process.

        Args:
            own: what this process brings up.
        """
        if parallel.processes() == 1:
            return own
        known = self._received()
        self._number = torch.tensor(own or 0)
        self._sent = dist.all_reduce(self._number, dist.ReduceOp.MAX, group=_control, async_op=True)
        return known

    def ask_now(self, own: int | None) -> int | None:
        """The same at once, for the end of the loop."""
        if parallel.processes() == 1:
            return own
        known = self.ask(own)
        return self._received() or known

    def _received(self) -> int | None:
        if self._sent is None:
            return None
        self._sent.wait()
        self._sent = None
        return int(self._number) or None
