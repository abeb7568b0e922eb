"""`cifargan train` in several processes: started by itself (`trainer.devices=N`) or by torchrun."""

import logging
import multiprocessing
import os
import platform
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifargan import progress
from cifargan.compose import key_of
from cifargan.device import select_device
from cifargan.distributed import is_launched, is_rank_zero, mark_met_by_all, on_rank_zero, process_group, world_size
from cifargan.errors import UserError, is_met_by_all, is_reported_elsewhere
from cifargan.explain import exit_code, report
from cifargan.resume import with_resume
from cifargan.run_log import RunLog
from cifargan.runs.directory import RunDirectory
from cifargan.training.interruption import HANGUPS, InterruptedRunError, caught_by, end_at_next, put_back
from cifargan.training.recovery import DivergedError


class ProcessEndedError(UserError):
    """One of the processes of a run ended before its time."""


# Trains in this process: a configuration, a run directory, the run's overrides, the command line, the run's log.
Train = Callable[[DictConfig, RunDirectory, list[str], list[str], RunLog], Any]


def is_restarted() -> bool:
    """Whether the agent has started these processes before, and one of them died."""
    return is_launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def met_by_all() -> Iterator[None]:
    """While entered, all ranks do the same and so raise the same errors; rank 0 prints them."""
    try:
        yield
    except Exception as error:
        mark_met_by_all(error)
        raise


def agreed_overrides(overrides: list[str], *, sweep: bool) -> list[str]:
    """What Hydra is to read. Several processes read what the first does, and write to its run directory.

    Processes that were started anew, since one of them had died, go on with the run.

    Raises:
        UserError: as `with_resume`; or a sweep was asked for.
    """
    if not is_launched():
        return with_resume(overrides, sweep=sweep)
    if sweep:
        raise UserError("-m under torchrun: every process would sweep; use cifargan train -m ... trainer.devices=N")

    def decide() -> list[str]:
        resumes = any(key_of(override) == "resume" for override in overrides)
        own = with_resume([*overrides, *([] if resumes or not is_restarted() else ["resume=latest"])], sweep=False)
        if not any(key_of(override) == "hydra.run.dir" for override in own):
            own.append("hydra.run.dir='${output_root}/${name}/" + time.strftime("%Y-%m-%d_%H-%M-%S'"))
        return own

    return on_rank_zero(decide)


def quiet_others() -> None:
    """Have all processes but the first say nothing but errors."""
    if not is_rank_zero():
        logging.getLogger().setLevel(logging.ERROR)
        progress.silence()


def train_in_processes(
    config: DictConfig, directory: RunDirectory, overrides: list[str], command: list[str], run_log: RunLog, train: Train
) -> Any:
    """Train in `trainer.devices` processes of this machine.

    Raises:
        UserError: there are not as many devices; or as in one process.
    """
    n = config.trainer.devices
    device = select_device(config.device)
    if device.type == "cuda":
        import torch

        if n > torch.cuda.device_count() or device.index is not None:
            raise UserError(
                f"trainer.devices={n} with device={config.device}: a process each needs a GPU, and torch sees "
                f"{torch.cuda.device_count()} here; lower it, and choose device=cuda"
            )
    elif device.type != "cpu":
        raise UserError(f"trainer.devices={n}: there is one {device.type} device; leave it out")
    settings = OmegaConf.to_container(config)
    try:
        outcome = launch(
            worker, settings, str(directory.path), overrides, command, train, processes=n, run=directory.path
        )
    except ProcessEndedError:
        run_log.begin()
        raise
    except InterruptedRunError as error:
        # The first process had the words, but the parent has the last one.
        step = directory.status().get("step", 0)
        raise InterruptedRunError(error.signal, f"stopped at step {step}; {error}") from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def worker(settings: dict[str, Any], path: str, overrides: list[str], command: list[str], train: Train) -> Any:
    """One of the processes. An error that all of them know of is what it returns; any other ends it."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    directory = RunDirectory(Path(path))
    with process_group(), RunLog(directory.path / "train.log") as run_log:
        try:
            return train(OmegaConf.create(settings), directory, overrides, command, run_log)
        except Exception as error:
            if not is_reported_elsewhere(error):
                run_log.error(error)
            if isinstance(error, InterruptedRunError):
                # An agent that was asked to stop as well takes no results any more.
                raise SystemExit(exit_code(error)) from error
            if is_met_by_all(error):
                return error
            if not is_reported_elsewhere(error):
                report(error)
            raise SystemExit(exit_code(error)) from error


def tell_of_others(error: Exception, run_log: RunLog) -> None:
    """See to it that an error which this process alone met with stands in the run's log.

    Raises:
        ProcessEndedError: it is but the echo of another process's end.
    """
    if world_size() > 1 and is_loss_of_others(error):
        raise ProcessEndedError("another process of this run cannot be reached any more: it has ended") from error
    if isinstance(error, InterruptedRunError | DivergedError):
        mark_met_by_all(error)
    if not is_rank_zero() and not is_met_by_all(error):
        run_log.begin()


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
    return f"resume with: cifargan train resume={run}"
