"""Checkpoints: the state of a training in one file, which is written whole or not at all.

A state is a nested dict of tensors, numbers, texts, lists and None. Its tensors are those of a safetensors file, the rest
is the JSON description of that file. It is written under a temporary name, synced and renamed, so a crash leaves the
checkpoint before it untouched; a checksum shows later damage.
"""

import filecmp
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from cifargan.errors import UserError
from cifargan.files import remove_partial_files, write_atomically
from cifargan.tensor_file import SUFFIX, DamagedError, read, to_bytes
from cifargan.untrusted import readable, refusing

log = logging.getLogger(__name__)

State = dict[str, Any]
KIND = "checkpoint"
FORMAT = 4
BEST = f"best{SUFFIX}"
TENSOR = "__tensor__"  # {TENSOR: name} stands for a tensor of the file
ITEMS = "__items__"  # {ITEMS: [[key, value], ...]} stands for a dict whose keys are not all texts


def load(path: Path) -> State:
    """Read a checkpoint to the CPU. Tuples come back as lists.

    Raises:
        DamagedError: its bytes are not those that were written, or never were a checkpoint.
        UserError: the file is missing, not a checkpoint, or of a format that this version does not read.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {readable(str(path))}")
    try:
        return state_of(*read(path), path)
    except DamagedError as error:
        raise DamagedError(f"{error}{_others(path)}") from error


def state_of(tensors: Mapping[str, Tensor], description: Mapping[str, Any], path: Path) -> State:
    """The state in what was read from the file `path`.

    Raises:
        UserError: it is not a checkpoint, or of a format that this version does not read.
    """
    where = readable(str(path))
    if description.get("kind") != KIND:
        raise UserError(f"{where} is not a checkpoint")
    if description.get("format") != FORMAT:
        found = readable(str(description.get("format")), limit=40)
        raise UserError(f"{where} has checkpoint format {found}; this version reads format {FORMAT}")
    with refusing(f"{where} is damaged or not a checkpoint of cifargan"):
        state = _unpacked(description["state"], tensors)
        if not isinstance(state, dict):
            raise TypeError("a state is a dict")
        return cast(State, state)


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A state as plain values, its tensors moved to `tensors` under the names of their places."""
    if isinstance(value, Tensor):
        while name in tensors:  # a key with a slash can lead to the name of another place
            name += "_"
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, dict):
        parts = [(key, _packed(part, f"{name}/{key}" if name else str(key), tensors)) for key, part in value.items()]
        plain = all(isinstance(key, str) and key not in (TENSOR, ITEMS) for key in value)
        return dict(parts) if plain else {ITEMS: parts}
    if isinstance(value, list | tuple):
        return [_packed(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a checkpoint holds tensors, numbers, texts, lists and dicts, not {type(value).__name__}")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_packed`."""
    if isinstance(value, list):
        return [_unpacked(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensors[value[TENSOR]]
    if ITEMS in value:
        return {key: _unpacked(part, tensors) for key, part in value[ITEMS]}
    return {key: _unpacked(part, tensors) for key, part in value.items()}


def require_classes(state: State, classes: tuple[str, ...]) -> None:
    """Check that a checkpoint is of data with these classes.

    Raises:
        UserError: it is not.
    """
    if tuple(state["classes"]) != classes:
        raise UserError(f"the checkpoint has the classes {state['classes']}, the data {list(classes)}")


def _others(path: Path) -> str:
    """Which checkpoint to use instead of a damaged one: the newest before it, or the newest of all."""
    others = [other for other in CheckpointStore(path.parent).steps() if other != path]
    older = [other for other in others if other.name < path.name] or others
    return f"; there is {older[-1].name} beside it" if older else "; there is no other in its folder"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: where they lie; made when the first is written.
        keep: how many of the newest to keep, beside the best.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[Path]:
        """The step checkpoints, oldest first."""
        return sorted(self.directory.glob(f"step_{'[0-9]' * 9}{SUFFIX}"))

    def save(self, state: State, step: int, *, best: bool = False) -> Path:
        """Write `state` as the checkpoint of `step`, remove older ones beyond `keep`, and copy it to the best if it is.

        Raises:
            UserError: the file system refused; what was there before is untouched.
        """
        path = self.directory / f"step_{step:09d}{SUFFIX}"
        tensors: dict[str, Tensor] = {}
        plain = _packed(state, "", tensors)
        write_atomically(path, to_bytes(tensors, {"kind": KIND, "format": FORMAT, "state": plain}))
        if best:
            self._copy_to_best(path)
        # Later ones are left alone: the run went back before them because they are damaged, and they do not count.
        for old in [other for other in self.steps() if other.name <= path.name][: -self.keep]:
            with suppress(OSError):
                old.unlink()
        return path

    def _copy_to_best(self, path: Path) -> None:
        with path.open("rb") as source:
            write_atomically(self.directory / BEST, lambda file: shutil.copyfileobj(source, file))

    def newest_whole(self) -> tuple[Path, State] | None:
        """The newest checkpoint that is not damaged, and its state; None if there is none.

        The log names each damaged one. The best checkpoint is the last resort.

        Raises:
            UserError: it is of a format that this version does not read.
        """
        best = self.directory / BEST
        for path in [*reversed(self.steps()), *([best] if best.is_file() else [])]:
            try:
                return path, load(path)
            except DamagedError as error:
                log.warning("%s", error)
        return None

    def mend(self, path: Path, state: State) -> None:
        """Clean up after a process that was killed, before the run resumes from its checkpoint `path`.

        Partial files are removed. Damaged checkpoints after `path` are renamed, so that they neither count as kept nor
        are tried again. A best checkpoint that was written as a step, but not yet copied, is copied.
        """
        remove_partial_files(self.directory)
        for later in [other for other in self.steps() if other.name > path.name]:
            # If `path` is the best one, which is the last resort, all of them are damaged.
            later.replace(later.with_suffix(".damaged"))
        best = self.directory / BEST
        is_best = state.get("best", {}).get("step") == state.get("step")
        if is_best and not (best.is_file() and filecmp.cmp(path, best, shallow=False)):
            self._copy_to_best(path)

    def find(self, which: str) -> Path:
        """The path of a checkpoint.

        Args:
            which: `last` (the newest that is not damaged), `best`, or a step number.

        Raises:
            UserError: there is none.
        """
        steps = self.steps()
        if which == "last" and steps:
            found = self.newest_whole()
            return steps[-1] if found is None else found[0]
        there = {str(int(path.stem.removeprefix("step_"))): path for path in steps}
        if (best := self.directory / BEST).is_file():
            there["best"] = best
        wanted = str(int(which)) if which.isdecimal() else which
        if wanted in there:
            return there[wanted]
        choice = f"there are {', '.join(there)}" if there else "the run has not written any yet"
        raise UserError(f"no checkpoint '{which}' in {self.directory}: {choice}")
