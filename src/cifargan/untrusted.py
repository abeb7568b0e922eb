"""What strangers wrote, read with suspicion: names and arrays from files that somebody was sent.

A reader here believes no length, shape or name before it has seen what is behind it, and runs nothing. This module
does not import numpy until an array is read, because the command line and every process that decodes images import it.
"""

from __future__ import annotations

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
MAX_SHOWN = 300  # characters of a text that somebody else wrote, within a message
MEMORY_SHARE = 0.5  # of the machine's memory that one file may ask for
SMALL = 64 * 2**20  # bytes that are not worth a doubt
MAX_RATIO = 200  # times that an array may be larger than what is stored of it; deflate packs zeros a thousandfold


def readable(text: str, *, limit: int = MAX_SHOWN) -> str:
    r"""A text as a terminal may show it: on one line, not endless, its control characters spelt out.

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
    """The content of a YAML file that may be a stranger's.

    An alias can stand for a thousand others, a tag for an object, and brackets within brackets take for ever to read.

    Args:
        text: what is in it.
        brackets: how many [ and { there may be.

    Raises:
        ValueError: it has aliases, tags or more brackets.
        yaml.YAMLError: it is no YAML.
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
            problem = "is no name"
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

    A line that is clear already stays, and so does what the file is not to blame for: no memory, and a signal.

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
    """An `.npz` file whose arrays are looked at before they are read.

    Every method may raise whatever a damaged file causes: use it under `refusing`.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = zipfile.ZipFile(path)
        self.names = [name.removesuffix(".npy") for name in self._file.namelist()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def _member(self, name: str) -> zipfile.ZipInfo:
        names = self._file.namelist()
        return self._file.getinfo(f"{name}.npy" if f"{name}.npy" in names else name)

    def kind(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and type that an array claims, without reading it."""
        with self._file.open(self._member(name)) as member:
            shape, _, dtype = _header(member)
        return shape, dtype

    def read(self, name: str) -> NDArray[Any]:
        """Read an array.

        Raises:
            UserError: it would not fit into memory.
            ValueError: it holds Python objects, or is shorter or longer than it claims.
        """
        import numpy as np

        info = self._member(name)
        with self._file.open(info) as member:
            shape, fortran, dtype = _header(member)
            size = dtype.itemsize
            for length in shape:
                size *= length
            require_memory(size, f"{readable(str(self.path))}: the array {readable(name)}")
            # The directory of a zip may claim that more is stored than the file has.
            if size > max(SMALL, MAX_RATIO * min(info.compress_size, self.path.stat().st_size)):
                raise UserError(
                    f"{readable(str(self.path))}: the array {readable(name)} unpacks to {_gigabytes(size)} of next to "
                    "nothing: it was not read"
                )
            if member.tell() + size != info.file_size:
                raise ValueError(f"{name} is not as long as it claims")
            buffer = bytearray(size)
            read = 0
            while read < size and (chunk := member.read(min(size - read, 2**20))):
                buffer[read : read + len(chunk)] = chunk
                read += len(chunk)
            if read != size or member.read(1):
                raise ValueError(f"{name} is not as long as it claims")
        return np.ndarray(shape, dtype, buffer, order="F" if fortran else "C")


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The header of an array: its shape, whether its columns lie together, its type.

    Raises:
        ValueError: it holds Python objects, which could run code.
    """
    import numpy as np

    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = readers[version](member)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    return shape, fortran, dtype
