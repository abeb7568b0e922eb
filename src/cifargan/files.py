"""Files that are whole or not there at all."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cifargan.errors import UserError


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write a file so that `path` only ever holds a whole one.

    Args:
        path: where to.
        content: the bytes, or a function that writes them to an open file.

    Raises:
        UserError: the file system refused; what was at `path` before is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_directory(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save turns a full disk into a RuntimeError of its zip writer, and keeps what the system said behind it.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"could not write {path}: {reason}; what was there before is untouched") from error
    finally:
        # Nothing is left of a file that was cut short, be it by Ctrl-C.
        with suppress(OSError):
            partial.unlink()


def remove_partial_files(directory: Path) -> None:
    """Remove what processes that were killed while writing left in a folder. No other may be writing there now."""
    for partial in directory.glob(".*.partial"):
        with suppress(OSError):
            partial.unlink()


def _sync_directory(directory: Path) -> None:
    """Make a rename durable, where the system can: not all let a directory be opened, or synced."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file whole or not at all.

    Raises:
        UserError: the file system refused.
    """
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
