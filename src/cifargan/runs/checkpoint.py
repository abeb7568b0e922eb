"""Checkpoints: one dict of tensors and builtins a file, complete or not there at all.

A file is written under a temporary name, synced and then renamed, so a crash leaves the one before untouched. Its last
bytes are a checksum of all others, which `torch.load` passes over: what a disk, a cable or a copy changed later is
noticed too. It loads with `weights_only=True`: a checkpoint from elsewhere cannot run code.
"""

import hashlib
import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from omegaconf import DictConfig

from cifargan.errors import UserError
from cifargan.files import remove_partial_files, write_atomically
from cifargan.pickles import load_tensors
from cifargan.schema import from_file
from cifargan.untrusted import readable, refusing, require_names

log = logging.getLogger(__name__)

State = dict[str, Any]
FORMAT = 3
MAX_IMAGE_SIZE = 1024
SEAL = b"\ncifargan sha256 "
SEAL_BYTES = len(SEAL) + 64 + 1


class DamagedError(UserError):
    """The bytes of a checkpoint are not those that were written."""


def load(path: Path) -> State:
    """Read a checkpoint to the CPU.

    Raises:
        DamagedError: its bytes are not those that were written, or never were a checkpoint.
        UserError: the file is missing, a torch file of something else, or of a format that this version does not know.
    """
    try:
        sealed = _is_sealed(path)
        state = load_tensors(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint at {path}") from error
    except DamagedError:
        raise
    except Exception as error:
        # Damaged bytes can make the unpickler fail in any way.
        raise DamagedError(f"{path} is damaged or no checkpoint{_others(path)}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path} is a torch file, but no cifargan checkpoint")
    found = state["format"]
    if type(found) is int and found == FORMAT:
        if not sealed:
            raise DamagedError(f"{path} is damaged: its end, with the checksum, is missing{_others(path)}")
        return cast(State, state)
    # Lists within lists cannot always be written out.
    said = readable(str(found)) if isinstance(found, int | str) else type(found).__name__
    raise UserError(f"{path} has checkpoint format {said}; this version reads format {FORMAT}")


def _is_sealed(path: Path) -> bool:
    """Whether a file ends in a checksum.

    Raises:
        DamagedError: it does, and it is the checksum of other bytes.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - SEAL_BYTES))
        seal = file.read()
        if not seal.startswith(SEAL) or len(seal) != SEAL_BYTES:
            return False
        file.seek(0)
        digest = hashlib.sha256()
        left = size - SEAL_BYTES
        while left and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
    if seal != _seal(digest.hexdigest()):
        raise DamagedError(f"{path} is damaged: its checksum does not fit its bytes{_others(path)}")
    return True


def _seal(digest: str) -> bytes:
    return SEAL + digest.encode() + b"\n"


class _Sealing:
    """Passes bytes on to a file and computes their checksum on the way: no byte is read twice."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_sealed(state: State, file: IO[bytes]) -> None:
    sealing = _Sealing(file)
    torch.save(state, cast(IO[bytes], sealing))
    file.write(_seal(sealing.digest.hexdigest()))


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint says of itself, checked as what a stranger may have written.

    Attributes:
        config: the configuration of its run; nothing in it is looked up.
        classes: class names that can stand in file names.
        image_size: H = W of its images.
        step: its training step.
    """

    config: DictConfig
    classes: tuple[str, ...]
    image_size: int
    step: int


def describe(state: State, path: Path) -> Description:
    """Check and give what decides the networks of a checkpoint.

    Raises:
        UserError: it is missing, of the wrong kind, or refers to what is on this machine.
    """
    with refusing(f"{readable(str(path))} does not say what its networks are: it is damaged, or none of ours"):
        config = from_file(state["config"], readable(str(path)))
        classes, step, image_size = tuple(state["classes"]), state["step"], config.data.image_size
        if not all(isinstance(name, str) for name in classes) or type(step) is not int or step < 0:
            raise TypeError("classes are texts, a step is a number")
        if type(image_size) is not int or not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise TypeError("no size of images")
    require_names(classes, readable(str(path)))
    return Description(config=config, classes=classes, image_size=image_size, step=step)


def require_classes(state: State, classes: tuple[str, ...]) -> None:
    """Check that a checkpoint is of data with these classes.

    Raises:
        UserError: it is not.
    """
    if tuple(state["classes"]) != classes:
        raise UserError(f"the checkpoint has the classes {state['classes']}, the data {list(classes)}")


def _others(path: Path) -> str:
    """What else there is beside a damaged checkpoint: the newest before it, or the newest at all."""
    others = [other for other in CheckpointStore(path.parent).steps() if other != path]
    older = [other for other in others if other.name < path.name] or others
    return f"; there is {older[-1].name} beside it" if older else "; there is no other in its folder"


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
        """Write `state` as the checkpoint of `step`, drop those before it beyond `keep`, and make it `best.pt` if it is.

        Raises:
            UserError: the file system refused; what was there before is untouched.
        """
        path = self.directory / f"step_{step:09d}.pt"
        write_atomically(path, lambda file: _write_sealed({"format": FORMAT, **state}, file))
        if best:
            self._copy_to_best(path)
        # Later ones are left alone: they are of a life before a damaged checkpoint, and none of this one's to count.
        for old in [other for other in self.steps() if other.name <= path.name][: -self.keep]:
            with suppress(OSError):
                old.unlink()
        return path

    def _copy_to_best(self, path: Path) -> None:
        with path.open("rb") as source:
            write_atomically(self.directory / "best.pt", lambda file: shutil.copyfileobj(source, file))

    def newest_whole(self) -> tuple[Path, State] | None:
        """The newest checkpoint whose bytes are those that were written, and its state; None where none is.

        Each that is passed over is named in the log. The best one is the last resort.

        Raises:
            UserError: it is whole, but of a format that this version does not know.
        """
        best = self.directory / "best.pt"
        for path in [*reversed(self.steps()), *([best] if best.is_file() else [])]:
            try:
                return path, load(path)
            except DamagedError as error:
                log.warning("%s", error)
        return None

    def mend(self, path: Path, state: State) -> None:
        """Clear up what a sudden end left behind, before the run goes on from its checkpoint `path`.

        Half-written files go. Damaged checkpoints after `path` get another name, so that they neither count as kept nor
        come up again. A best checkpoint that was written as such, but not yet copied, is copied.
        """
        remove_partial_files(self.directory)
        for later in [other for other in self.steps() if other.name > path.name]:
            # After best.pt, to which one comes when all others are damaged, they all are.
            later.replace(later.with_suffix(".damaged"))
        best = self.directory / "best.pt"
        if state.get("best", {}).get("step") == state.get("step") and not _same_bytes(path, best):
            self._copy_to_best(path)

    def find(self, which: str) -> Path:
        """The path of a checkpoint.

        Args:
            which: `last`, which is the newest whole one, `best`, or a step number.

        Raises:
            UserError: there is none.
        """
        steps = self.steps()
        if which == "last" and steps:
            return next((path for path in reversed(steps) if _is_whole(path)), steps[-1])
        there = {str(int(path.stem.removeprefix("step_"))): path for path in steps}
        if (best := self.directory / "best.pt").is_file():
            there["best"] = best
        wanted = str(int(which)) if which.isdecimal() else which
        if wanted in there:
            return there[wanted]
        choice = f"there are {', '.join(there)}" if there else "the run has not written any yet"
        raise UserError(f"no checkpoint '{which}' in {self.directory}: {choice}")


def _is_whole(path: Path) -> bool:
    """Whether a file holds what was written; told in the log if not."""
    try:
        if not _is_sealed(path):
            load(path)
    except DamagedError as error:
        log.warning("%s", error)
        return False
    except (UserError, OSError):
        # Whole, but of no use: reading it says why.
        return True
    return True


def _same_bytes(path: Path, other: Path) -> bool:
    """Whether two checkpoints are the same, by their checksums."""
    try:
        ends = []
        for one in (path, other):
            with one.open("rb") as file:
                file.seek(max(0, one.stat().st_size - SEAL_BYTES))
                ends.append(file.read())
    except OSError:
        return False
    return ends[0] == ends[1]
