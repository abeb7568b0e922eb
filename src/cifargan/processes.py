"""`cifargan train` in several processes: under torchrun, or started here by torch's launcher (`trainer.devices=N`)."""

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

import torch
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

# Trains in this process: a configuration, a run directory, the run's overrides, the command line, the run's log.
Train = Callable[[DictConfig, RunDirectory, list[str], list[str], RunLog], Any]

LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "socket", "tcpstore")


class ProcessEndedError(UserError):
    """A process of the run has ended, and with it the run."""


@contextmanager
def met_by_all() -> Iterator[None]:
    """While entered, all ranks do the same and so raise the same errors; rank 0 prints them."""
    try:
        yield
    except Exception as error:
        mark_met_by_all(error)
        raise


def agreed_overrides(overrides: list[str], *, sweep: bool) -> list[str]:
    """The overrides with those of a resumed run; all ranks get those of rank 0, and one run directory.

    Ranks that torchrun has restarted, since one of them had died, resume the run.

    Raises:
        UserError: as `with_resume`; or it is a sweep under torchrun.
    """
    if not is_launched():
        return with_resume(overrides, sweep=sweep)
    if sweep:
        raise UserError("-m under torchrun: every process would sweep; use cifargan train -m ... trainer.devices=N")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    def decide() -> list[str]:
        resumes = not restarted or any(key_of(override) == "resume" for override in overrides)
        own = with_resume([*overrides, *([] if resumes else ["resume=latest"])], sweep=False)
        if not any(key_of(override) == "hydra.run.dir" for override in own):
            own.append("hydra.run.dir='${output_root}/${name}/" + time.strftime("%Y-%m-%d_%H-%M-%S'"))
        return own

    return on_rank_zero(decide)


def quiet_others() -> None:
    """Let all ranks but rank 0 print only errors."""
    if not is_rank_zero():
        logging.getLogger().setLevel(logging.ERROR)
        progress.silence()


def tell_of_others(error: Exception, run_log: RunLog) -> None:
    """Write an error that only this rank has met into the run's log.

    Raises:
        ProcessEndedError: the error only says that another process has ended.
    """
    lost = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
    if world_size() > 1 and lost:
        raise ProcessEndedError("another process of this run cannot be reached any more: it has ended") from error
    if isinstance(error, InterruptedRunError | DivergedError):
        mark_met_by_all(error)
    if not is_rank_zero() and not is_met_by_all(error):
        run_log.begin()


def train_in_processes(
    config: DictConfig, directory: RunDirectory, overrides: list[str], command: list[str], run_log: RunLog, train: Train
) -> Any:
    """Train in `trainer.devices` processes of this machine, and return what `train` returns on rank 0.

    Raises:
        UserError: there are not as many devices; or an error that all ranks have met.
        ProcessEndedError: one of the processes ended with an error or was killed; the others are ended, too.
        InterruptedRunError: a signal asked the run to stop, and all ranks have saved and stopped.
        KeyboardInterrupt: a second Ctrl-C; the processes are killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    n, device, gpus = config.trainer.devices, select_device(config.device), torch.cuda.device_count()
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"trainer.devices={n}: there is one {device.type} device; leave it out")
    if device.type == "cuda" and (n > gpus or device.index is not None):
        raise UserError(
            f"trainer.devices={n} with device={config.device}: each process needs a GPU, and torch sees {gpus} here; "
            "lower it, and choose device=cuda"
        )
    # All processes are on this machine: its name needs no look-up.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if platform.system() == "Darwin" else "lo")
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # torch would kill processes that need more than 30 s to save
    )
    for name in logging.root.manager.loggerDict:  # failures are reported below, in one line
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    received: list[int] = []
    try:
        with passing_on(received):
            arguments = (OmegaConf.to_container(config), str(directory.path), overrides, command, train, n)
            outcome = elastic_launch(settings, _worker)(*arguments)[0]
    except (ChildFailedError, SignalException) as error:
        if isinstance(error, SignalException):
            number, rank, failure = int(error.sigval), 0, None
        else:
            rank, failure = error.get_first_failure()
            number = received[0] if received else failure.exitcode - 128
        if failure is None or number > 0:
            step = directory.status().get("step", 0)
            text = f"stopped at step {step}; resume with: cifargan train resume={directory.path}"
            raise InterruptedRunError(number, text) from None
        run_log.begin()
        killed = f"was ended by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else ""
        raise ProcessEndedError(
            f"process {rank} of {n} (pid {failure.pid}) {killed or 'ended with an error'}, and the others with it: see "
            f"{directory.path / 'train.log'}; resume from the last checkpoint with: "
            f"cifargan train resume={directory.path}"
        ) from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _worker(settings: dict[str, Any], path: str, overrides: list[str], command: list[str], train: Train, n: int) -> Any:
    """Train as one rank. An error that all ranks have met is returned; any other ends the process."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // n))
    directory = RunDirectory(Path(path))
    with process_group(), RunLog(directory.path / "train.log") as run_log:
        try:
            return train(OmegaConf.create(settings), directory, overrides, command, run_log)
        except Exception as error:
            if not is_reported_elsewhere(error):
                run_log.error(error)
            if isinstance(error, InterruptedRunError):
                raise SystemExit(exit_code(error)) from error  # a launcher that is asked to stop takes no results
            if is_met_by_all(error):
                return error
            report(error)
            raise SystemExit(exit_code(error)) from error


@contextmanager
def passing_on(received: list[int]) -> Iterator[None]:
    """While entered, pass signals on to the processes that this one has started: they save and end.

    A second signal of the same kind kills them, and ends this process as it does by default.

    Args:
        received: gets the signals.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        children = multiprocessing.active_children()
        if number in received and number not in HANGUPS:
            for child in children:
                child.kill()
            end_at_next(number)
            signal.raise_signal(number)
        received.append(number)
        if not children:
            raise SignalException("", signal.Signals(number))  # torch is still preparing, and can stop that
        for child in children:
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, number)

    previous = caught_by(note)
    try:
        yield
    finally:
        put_back(previous)
