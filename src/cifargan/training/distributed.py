"""Processes that train one run: how they are started, and how they find each other.

torch's elastic agent starts them, ends all where one dies, and starts them anew where it is told to; `torchrun` is that
agent as a program, for several machines, and `launch` is the same agent inside of `cifargan train`, for one.
"""

import logging
import multiprocessing
import os
import platform
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from cifargan import agreement
from cifargan.errors import UserError
from cifargan.training.interruption import HANGUPS, InterruptedRunError, caught_by, end_at_next, put_back

PATIENCE = timedelta(hours=1)  # that a process waits for others, which may be fetching data or weights


class ProcessEndedError(UserError):
    """One of the processes of a run ended before its time."""


def is_launched() -> bool:
    """Whether an agent has started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_restarted() -> bool:
    """Whether the agent has started these processes before, and one of them died."""
    return is_launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined() -> Iterator[None]:
    """While entered, this process is one of those that its agent has started; nothing, where none has."""
    if not is_launched():
        yield
        return
    own = int(os.environ["LOCAL_RANK"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        torch.cuda.set_device(own % torch.cuda.device_count())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    # An agent that starts processes anew may keep its store, in which the addresses of the dead ones still stand.
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=PATIENCE)
    agreement.join(dist.new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield
    finally:
        agreement.join(None)
        dist.destroy_process_group()


def is_loss_of_others(error: BaseException) -> bool:
    """Whether an error says that another process could not be reached any more."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "socket", "tcpstore")
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def launch(work: Callable[..., Any], *args: Any, processes: int, run: Path) -> Any:
    """Call `work(*args)` in so many new processes on this machine, and wait for all of them.

    Args:
        work: a function of a module.
        args: what can be handed on.
        processes: how many.
        run: the run's folder, for messages.

    Returns:
        What it returned in the first process.

    Raises:
        ProcessEndedError: one of the processes ended with an error, or was ended; the others have been, too.
        InterruptedRunError: a signal asked the run to stop, and all processes have.
        KeyboardInterrupt: a second Ctrl-C asked to stop at once; the processes were killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # They all are on this machine: its name needs no looking up.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if platform.system() == "Darwin" else "lo")
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # of the others more is wanted than the agent does
    )
    # What the agent would say of a failure is said below.
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with handing_on() as heard:
            return elastic_launch(settings, work)(*args)[0]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if heard:
            raise InterruptedRunError(heard[0], _stopped(run)) from None
        if failure.exitcode > 128:
            raise InterruptedRunError(failure.exitcode - 128, _stopped(run)) from None
        how = (
            f"was ended by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else "ended with an error"
        )
        raise ProcessEndedError(
            f"process {rank} of {processes} (pid {failure.pid}) {how}, and the others with it: see {run / 'train.log'}; "
            f"go on from the last checkpoint with: cifargan train resume={run}"
        ) from None
    except SignalException as error:
        raise InterruptedRunError(int(error.sigval), _stopped(run)) from None


@contextmanager
def handing_on() -> Iterator[list[int]]:
    """While entered, a signal is handed on to the processes that this one has started, which save, and is waited for.

    A second one of the same kind kills them, and ends this process as it would have without us.

    Yields:
        The signals so far.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    heard: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        children = multiprocessing.active_children()
        if number in heard and number not in HANGUPS:
            for child in children:
                child.kill()
            end_at_next(number)
            signal.raise_signal(number)
        heard.append(number)
        if not children:
            # The agent is at its preparations, and knows how to end those.
            raise SignalException("", signal.Signals(number))
        for child in children:
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, number)

    previous = caught_by(note)
    try:
        yield heard
    finally:
        put_back(previous)


def _stopped(run: Path) -> str:
    return f"go on with: cifargan train resume={run}"
