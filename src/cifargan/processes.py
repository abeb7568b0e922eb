"""`cifargan train` in several processes: started by itself (`trainer.devices=N`) or by torchrun."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifargan import progress
from cifargan.agreement import is_known_to_all, is_told, leads, note_as_known_to_all, on_first
from cifargan.compose import key_of
from cifargan.config import parse
from cifargan.device import select_device
from cifargan.errors import UserError
from cifargan.explain import exit_code, report
from cifargan.parallel import processes
from cifargan.resume import with_resume
from cifargan.run_log import RunLog
from cifargan.runs.directory import RunDirectory
from cifargan.training.distributed import (
    ProcessEndedError,
    is_launched,
    is_loss_of_others,
    is_restarted,
    joined,
    launch,
)
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.recovery import DivergedError
from cifargan.training.trainer import Result

# Trains in this process: a configuration, a run directory, the run's overrides, the command line, the run's log.
Train = Callable[[DictConfig, RunDirectory, list[str], list[str], RunLog], Result]


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

    return on_first(decide)


def quiet_others() -> None:
    """Have all processes but the first say nothing but errors."""
    if not leads():
        logging.getLogger().setLevel(logging.ERROR)
        progress.silence()


def train_in_processes(
    config: DictConfig, directory: RunDirectory, overrides: list[str], command: list[str], run_log: RunLog, train: Train
) -> Result:
    """Train in `trainer.devices` processes of this machine.

    Raises:
        UserError: there are not as many devices; or as in one process.
    """
    n = config.trainer.devices
    parse(config)
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
    if isinstance(outcome, Result):
        return outcome
    raise outcome


def worker(
    settings: dict[str, Any], path: str, overrides: list[str], command: list[str], train: Train
) -> Result | Exception:
    """One of the processes. An error that all of them know of is what it returns; any other ends it."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    directory = RunDirectory(Path(path))
    with joined(), RunLog(directory.path / "train.log") as run_log:
        try:
            return train(OmegaConf.create(settings), directory, overrides, command, run_log)
        except Exception as error:
            if not is_told(error):
                run_log.error(error)
            if isinstance(error, InterruptedRunError):
                # An agent that was asked to stop as well takes no results any more.
                raise SystemExit(exit_code(error)) from error
            if is_known_to_all(error):
                return error
            if not is_told(error):
                report(error)
            raise SystemExit(exit_code(error)) from error


def tell_of_others(error: Exception, run_log: RunLog) -> None:
    """See to it that an error which this process alone met with stands in the run's log.

    Raises:
        ProcessEndedError: it is but the echo of another process's end.
    """
    if processes() > 1 and is_loss_of_others(error):
        raise ProcessEndedError("another process of this run cannot be reached any more: it has ended") from error
    if isinstance(error, InterruptedRunError | DivergedError):
        note_as_known_to_all(error)
    if not leads() and not is_known_to_all(error):
        run_log.begin()
