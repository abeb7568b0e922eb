"""Launchers: which there are, and how a job behaves in a process beside others."""

import contextlib
import logging
import os
import platform
import signal
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cifargan.compose import key_of
from cifargan.config_files import LAUNCHER
from cifargan.errors import UserError, did_you_mean
from cifargan.explain import explain
from cifargan.runs.directory import RunDirectory
from cifargan.runs.lock import RunLock
from cifargan.training.interruption import NOTICES
from cifargan.untrusted import readable

if TYPE_CHECKING:
    from cifargan.cli.sweep import Sweep
    from cifargan.cli.train import Outcome

EXTRAS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "slurm": "submitit",
    "ray": "ray",
    "ray_gpu": "ray",
}
PLACES = ".devices"  # in the sweep's folder: one lock a CUDA device
POLL = 1.0  # s


def require_launcher(overrides: list[str], *, sweep: bool, own: bool = False) -> None:
    """Check that the launcher which the overrides ask for can be had.

    Args:
        overrides: the command line's.
        sweep: whether there is one.
        own: whether configs of one's own may hold a launcher of a name that is not known here.

    Raises:
        UserError: it is not installed, there is none of that name, or there is no sweep to launch.
    """
    for override in overrides:
        if key_of(override) != LAUNCHER:
            continue
        name = override.partition("=")[2].strip("'\"")
        if not sweep:
            raise UserError(f"{override}: launches the jobs of a sweep, which takes -m")
        if not own and (hint := did_you_mean(name, EXTRAS) if name not in EXTRAS else ""):
            raise UserError(f"{override}: no such launcher{hint}")
        extra = EXTRAS.get(name)
        if extra is not None and find_spec(f"hydra_plugins.hydra_{extra}_launcher") is None:
            raise UserError(f"{override}: that launcher is not installed: pip install 'cifargan[{extra}]'")


@contextlib.contextmanager
def beside_others(sweep: "Sweep", directory: RunDirectory, config: DictConfig) -> Iterator[None]:
    """What a job needs that shares terminal, signals and GPUs with others.

    Its terminal is its log; it is stopped by the sweep, which Ctrl-C reaches, too; and it gets a GPU of its own.
    """
    done = threading.Event()

    def stop_with_the_sweep() -> None:
        while not done.wait(POLL):
            # Before it trains there is nothing to save, and nobody to take the signal.
            if sweep.stop_signal is not None and directory.status().get("status") == "running":
                os.kill(os.getpid(), signal.SIGTERM)
                return

    # A training in several processes takes its GPUs itself.
    several = config.trainer.get("devices", 1) > 1
    with (
        _quiet(),
        contextlib.nullcontext(str(config.device))
        if several
        else cuda_place(sweep.directory, str(config.device)) as device,
    ):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        config.device = device
        threading.Thread(target=stop_with_the_sweep, daemon=True).start()
        try:
            yield
        finally:
            done.set()


def hand_back(number: int) -> None:
    """Tell a launcher of a scheduler's notice that a job has heeded: submitit then has Slurm start the job once more.

    Args:
        number: of the signal. Any but a notice means this job alone, and ends it.

    Raises:
        SystemExit: the job will be started again.
    """
    handler = signal.getsignal(number)
    if number in NOTICES and callable(handler):
        # Whether the job has been started often enough is the launcher's to say, which does so by an error.
        with contextlib.suppress(Exception):
            handler(number, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars and lines of several jobs off one terminal; warnings go into the job's log with all else."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers.clear()
    logging.captureWarnings(True)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers


@contextlib.contextmanager
def cuda_place(sweep: Path, device: str) -> Iterator[str]:
    """The device of a job: where `auto` may be one of several GPUs, the first that no other job of the sweep is on.

    Args:
        sweep: the sweep's folder, which the jobs have in common.
        device: what the configuration asks for.
    """
    import torch

    count = torch.cuda.device_count() if device == "auto" else 0
    with contextlib.ExitStack() as stack:
        for place in range(count if count > 1 else 0):
            # Devices are numbered anew on each machine.
            folder = sweep / PLACES / platform.node() / str(place)
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(UserError):  # which is how a lock says that it is taken
                stack.enter_context(RunLock(folder))
                device = f"cuda:{place}"
                break
        else:
            if count > 1:
                # More jobs than GPUs: they share.
                device = f"cuda:{os.getpid() % count}"
        yield device


def line_about(outcome: "Outcome") -> str:
    """How a job ended, in one line."""
    name = outcome.directory.name
    if outcome.error is not None:
        reason = (
            explain(outcome.error) or f"a bug in cifargan, see {outcome.directory / 'train.log'}: {outcome.error!r}"
        )
        verb = "" if hasattr(outcome.error, "signal") else "failed: "
        return readable(f"job {name} {verb}{reason}")
    result = outcome.result
    assert result is not None  # noqa: S101 - a job without an error has a result
    best = "" if result.best_score is None else f", best score {result.best_score:.4g}"
    return f"job {name} finished: step {result.step}{best}"
