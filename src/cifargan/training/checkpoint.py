"""Checkpoints: one dict of tensors and builtins a file, complete or not there at all.

A file is written under a temporary name, synced and then renamed, so a crash leaves the one before untouched. It loads
with `weights_only=True`: a checkpoint from elsewhere cannot run code.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from cifargan.errors import UserError
from cifargan.files import write_atomically

State = dict[str, Any]
FORMAT = 2


def load(path: Path) -> State:
    """Read a checkpoint to the CPU.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, or of a format that this version does not know.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint at {path}") from error
    except Exception as error:
        # Damaged bytes can make the unpickler fail in any way.
        raise UserError(f"{path} is damaged or no checkpoint{_older(path)}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is a torch file, but no cifargan checkpoint")
    if state["format"] == 1:
        state = _from_format_1(state)
    if state["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {state['format']}; this version reads format {FORMAT}")
    checked: State = state
    return checked


def _from_format_1(state: State) -> State:
    """Format 1 kept the order of the epoch at hand, where format 2 keeps the seed of all orders.

    A run that goes on from it shuffles anew; everything else goes on as it was.
    """
    stream = {**state["stream"], "seed": int(state["config"]["seed"])}
    stream.pop("order", None)
    return {**state, "format": 2, "stream": stream, "switches": {}}


def require_classes(state: State, classes: tuple[str, ...]) -> None:
    """Check that a checkpoint is of data with these classes.

    Raises:
        UserError: it is not.
    """
    if tuple(state["classes"]) != classes:
        raise UserError(f"the checkpoint has the classes {state['classes']}, the data {list(classes)}")


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
        return sorted(self.directory.glob(f"step_{'[0-9]' * 9}.pt"))

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
        there = {str(int(path.stem.removeprefix("step_"))): path for path in steps}
        if (best := self.directory / "best.pt").is_file():
            there["best"] = best
        wanted = str(int(which)) if which.isdecimal() else which
        if wanted in there:
            return there[wanted]
        choice = f"there are {', '.join(there)}" if there else "the run has not written any yet"
        raise UserError(f"no checkpoint '{which}' in {self.directory}: {choice}")
