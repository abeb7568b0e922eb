"""Checkpoints: one dict of tensors and builtins a file, complete or not there at all.

A file is written under a temporary name, synced and then renamed, so a crash leaves the one before untouched. It loads
with `weights_only=True`: a checkpoint from elsewhere cannot run code.
"""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from cifargan.errors import UserError

State = dict[str, Any]
FORMAT = 1


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write a file so that `path` only ever holds a whole one.

    Args:
        path: where to.
        content: the bytes, or a function that writes them to an open file.

    Raises:
        UserError: the file system refused; what was at `path` before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_directory(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f"could not write {path}: {reason}; what was there before is untouched") from error


def _sync_directory(directory: Path) -> None:
    """Make a rename durable, where the system lets a directory be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> State:
    """Read a checkpoint to the CPU.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, or of a format that this version does not know.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint at {path}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or no checkpoint{_older(path)}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is a torch file, but no cifargan checkpoint")
    if state["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {state['format']}; this version reads format {FORMAT}")
    return state


def _older(path: Path) -> str:
    """What to do about a damaged checkpoint: name the one before it, if there is one."""
    others = [other for other in CheckpointStore(path.parent).steps() if other != path]
    return f"; delete it to go on from {others[-1].name}" if others else "; there is no other in its folder"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: where they lie; made when the first is written.
        keep: how many of the newest to keep, beside `best.pt`.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[Path]:
        """The step checkpoints, oldest first."""
        return sorted(self.directory.glob("step_*.pt"))

    def save(self, state: State, step: int, *, best: bool = False) -> Path:
        """Write `state` as the checkpoint of `step`, drop those beyond `keep`, and copy it to `best.pt` if it is."""
        path = self.directory / f"step_{step:09d}.pt"
        write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
        if best:
            self._copy_to_best(path)
        for old in self.steps()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def _copy_to_best(self, path: Path) -> None:
        with path.open("rb") as source:
            write_atomically(self.directory / "best.pt", lambda file: shutil.copyfileobj(source, file))

    def find(self, which: str) -> Path:
        """The path of a checkpoint.

        Args:
            which: `last`, `best`, or a step number.

        Raises:
            UserError: there is none.
        """
        steps = self.steps()
        if which == "last" and steps:
            return steps[-1]
        name = f"step_{int(which):09d}.pt" if which.isdigit() else f"{which}.pt"
        wanted = self.directory / name
        if wanted.is_file():
            return wanted
        there = [str(int(path.stem.removeprefix("step_"))) for path in steps]
        there += ["best"] if (self.directory / "best.pt").is_file() else []
        choice = f"there are {', '.join(there)}" if there else "the run has not written any yet"
        raise UserError(f"no checkpoint '{which}' in {self.directory}: {choice}")
