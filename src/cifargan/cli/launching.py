"""Launchers of a sweep's jobs: which there are, and what a job does in a process beside others."""

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

import filelock
from omegaconf import DictConfig

from cifargan.compose import key_of, value_of
from cifargan.config_files import LAUNCHER
from cifargan.errors import UserError, did_you_mean
from cifargan.runs.directory import RunDirectory
from cifargan.training.interruption import NOTICES

if TYPE_CHECKING:
    from cifargan.cli.sweep import Sweep

EXTRAS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "slurm": "submitit",
    "ray": "ray",
    "ray_gpu": "ray",
}
DEVICES = ".devices"  # in the sweep's folder: one lock a CUDA device
POLL = 1.0  # s


def require_launcher(overrides: list[str], *, sweep: bool, own: bool = False) -> None:
    """Check that the launcher which the overrides choose is installed.

    Args:
        overrides: of the command line.
        sweep: whether it is a sweep.
        own: whether configs of the user may hold a launcher of another name.

    Raises:
        UserError: it is not installed, there is none of that name, or there is no sweep.
    """
    for override in (one for one in overrides if key_of(one) == LAUNCHER):
        name = value_of(override)
        if not sweep:
            raise UserError(f"{override}: launches the jobs of a sweep, which takes -m")
        if name not in EXTRAS and not own and (hint := did_you_mean(name, EXTRAS)):
            raise UserError(f"{override}: no such launcher{hint}")
        if name in EXTRAS and find_spec(f"hydra_plugins.hydra_{EXTRAS[name]}_launcher") is None:
            raise UserError(f"{override}: that launcher is not installed: pip install 'cifargan[{EXTRAS[name]}]'")


@contextlib.contextmanager
def beside_others(sweep: "Sweep", run: RunDirectory, config: DictConfig) -> Iterator[None]:
    """While entered, a job writes to its log alone, has a GPU of its own, and is stopped by its sweep.

    Ctrl-C reaches all processes of a terminal, so it is left to the sweep.
    """
    done = threading.Event()

    def stop_with_the_sweep() -> None:
        while not done.wait(POLL):
            # Before it trains there is nothing to save, and no handler for the signal.
            if sweep.stop_signal is not None and run.status().get("status") == "running":
                os.kill(os.getpid(), signal.SIGTERM)
                return

    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        if config.trainer.get("devices", 1) == 1:
            config.device = stack.enter_context(free_device(sweep.directory, str(config.device)))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=stop_with_the_sweep, daemon=True).start()
        stack.callback(done.set)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress and logs of several jobs off one terminal; warnings go to the job's log."""
    root = logging.getLogger()
    handlers, root.handlers[:] = root.handlers[:], []
    logging.captureWarnings(True)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers


@contextlib.contextmanager
def free_device(sweep: Path, device: str) -> Iterator[str]:
    """The device of a job: for `auto` with several GPUs, the first that no other job of the sweep on this machine uses."""
    import torch

    count = torch.cuda.device_count() if device == "auto" else 0
    with contextlib.ExitStack() as stack:
        for index in range(count if count > 1 else 0):
            path = sweep / DEVICES / platform.node() / str(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(filelock.Timeout):
                stack.enter_context(filelock.FileLock(path, blocking=False))
                device = f"cuda:{index}"
                break
        else:
            if count > 1:
                device = f"cuda:{os.getpid() % count}"  # more jobs than GPUs
        yield device


def hand_back(number: int) -> None:
    """Pass a scheduler's notice to the launcher once the job has saved: submitit then has Slurm start the job again.

    Raises:
        SystemExit: the job will be started again.
    """
    handler = signal.getsignal(number)
    if number in NOTICES and callable(handler):
        with contextlib.suppress(Exception):  # how submitit says that it was started often enough
            handler(number, None)
