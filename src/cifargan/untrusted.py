"""Guards for untrusted files: texts, names, arrays, folders. Lengths, shapes and names are checked before use.

numpy is imported when an array is read, because the command line and every process that decodes images import this.
"""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import yaml

from cifargan.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_NAME_BYTES = 128  # of a class name: a file system takes 255, and a sheet's name has more parts than the class
MAX_SHOWN = 300  # characters of an untrusted text in a message
MEMORY_SHARE = 0.5  # of the machine's memory that one file may ask for
SMALL = 64 * 2**20  # bytes that are not worth a doubt
MAX_RATIO = 200  # times that an array may be larger than what is stored of it; deflate packs zeros a thousandfold


def readable(text: str, *, limit: int = MAX_SHOWN) -> str:
    r"""A text that is safe on a terminal: one line of limited length, control characters spelt out.

    Args:
        text: anything, undecodable bytes of file names included.
        limit: characters beyond which the middle is left out.

    Returns:
        The text, where each character that does not print stands as in a Python string: `\n`, `\x1b`.
    """
    if len(text) > limit:
        text = f"{text[: limit // 2]}[...]{text[-limit // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def plain_yaml(text: str, *, brackets: int) -> Any:
    """The content of an untrusted YAML file.

    An alias can stand for a thousand others, a tag for an object, and nested brackets take for ever to read.

    Args:
        text: what is in it.
        brackets: how many [ and { there may be.

    Raises:
        ValueError: it has aliases, tags or more brackets.
        yaml.YAMLError: it is not YAML.
    """
    found = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        found += isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken)
        if found > brackets or isinstance(token, yaml.AliasToken | yaml.TagToken):
            raise ValueError("aliases, tags or lists of lists")
    return yaml.safe_load(text)


def require_names(names: Sequence[str], where: str) -> None:
    """Check that class names can stand in file names, in TensorBoard and on a terminal as they are.

    Args:
        names: the class names.
        where: what they are of, for the message.

    Raises:
        UserError: one is empty, too long, is given twice, does not print, or would lead to another folder.
    """
    seen: set[str] = set()
    for name in names:
        if not name or name.strip(". ") == "":
            problem = "is not a name"
        elif not name.isprintable():
            problem = "holds characters that do not print"
        elif "/" in name or "\\" in name:
            problem = "holds a slash"
        elif len(name.encode()) > MAX_NAME_BYTES:
            problem = f"is longer than {MAX_NAME_BYTES} bytes"
        elif name in seen:
            problem = "is there twice"
        else:
            seen.add(name)
            continue
        raise UserError(f"{where}: the class name '{readable(name, limit=60)}' {problem}: rename the class")


def require_memory(size: int, what: str) -> None:
    """Check that something fits into half of this machine's memory before any of it is read.

    Args:
        size: bytes.
        what: what needs them, for the message.

    Raises:
        UserError: it does not.
    """
    limit = MEMORY_SHARE * _memory()
    if size > limit:
        raise UserError(f"{what} needs {_gigabytes(size)} of memory, and may take {_gigabytes(limit)} here: use fewer")


def _memory() -> float:
    """The machine's memory in bytes, where the system tells."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float(sys.maxsize)


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader raise into one line.

    A `UserError` passes, and so does what the file is not to blame for: no memory, and a signal.

    Raises:
        UserError: with `message`.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # nothing promises which one damaged bytes raise
        if hasattr(error, "signal") or type(error).__name__ == "OutOfMemoryError":
            raise
        raise UserError(message) from error


class ArrayFile:
    """An `.npz` file whose arrays are checked before they are read.

    Every method may raise whatever a damaged file causes: use it under `refusing`.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = zipfile.ZipFile(path)
        self._members = {name.removesuffix(".npy"): name for name in self._file.namelist()}
        self.names = [*self._members]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def kind(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and type that an array claims, without reading it."""
        with self._file.open(self._members[name]) as member:
            return _header(member)

    def read(self, name: str) -> NDArray[Any]:
        """Read an array.

        Raises:
            UserError: it needs too much memory.
            ValueError: it holds Python objects, or is shorter or longer than it claims.
        """
        import numpy as np

        info = self._file.getinfo(self._members[name])
        with self._file.open(info) as member:
            shape, dtype = _header(member)
            size = dtype.itemsize * math.prod(shape)
            what = f"{readable(str(self.path))}: the array {readable(name)}"
            require_memory(size, what)
            # The directory of a zip may claim that more is stored than the file has.
            if size > max(SMALL, MAX_RATIO * min(info.compress_size, self.path.stat().st_size)):
                raise UserError(f"{what} unpacks to {_gigabytes(size)} of next to nothing: it was not read")
            if member.tell() + size != info.file_size:
                raise ValueError(f"{name} is not as long as it claims")
            member.seek(0)
            array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):
                raise ValueError(f"{name} is longer than it claims")
        return array


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and type in the header of an array.

    Raises:
        ValueError: it holds Python objects, which could run code.
    """
    import numpy as np

    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[version](member)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("an array of Python objects, or of negative length")
    return shape, dtype


def require_no_pipes(folder: Path) -> None:
    """Check that a folder holds no pipe, socket or device, and no link to one: reading it could take for ever.

    Raises:
        UserError: it does.
    """
    for entry in _entries(folder):
        # A link that leads nowhere does no harm.
        if not entry.is_file() and not entry.is_dir() and Path(entry.path).exists():
            raise UserError(f"{readable(entry.path)} is neither a file nor a folder: remove it")


def require_no_links_out(folder: Path) -> None:
    """Check that no link in a folder leads out of it, so that nothing is written elsewhere.

    The folder itself may be reached through links.

    Raises:
        UserError: one does.
    """
    own = folder.resolve()
    for entry in _entries(folder):
        if entry.is_symlink() and own not in (target := Path(os.path.realpath(entry.path)), *target.parents):
            raise UserError(
                f"{readable(entry.path)} is a link to {readable(str(target))}, and a run writes only into its own folder: "
                "put a copy in its place, or remove it"
            )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that lies in a folder and the folders in it; links are not followed.

    Raises:
        UserError: one cannot be read.
    """
    pending = [os.fspath(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                inside = list(entries)
        except FileNotFoundError:  # a training removes what it no longer needs
            continue
        except OSError as error:
            raise UserError(f"cannot read {readable(str(error.filename))}: {error.strerror}") from error
        yield from inside
        pending += [entry.path for entry in inside if entry.is_dir(follow_symlinks=False)]
