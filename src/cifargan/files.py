"""Write files whole or not at all."""

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
        path: where to; missing folders are made.
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
        # The rename is durable once the folder is synced; not every system can open or sync a folder.
        with suppress(OSError):
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"could not write {path}: {reason}; what was there before is untouched") from error
    finally:
        # Nothing is left of a file that was cut short, not even by Ctrl-C.
        with suppress(OSError):
            partial.unlink()


def remove_partial_files(directory: Path) -> None:
    """Remove what killed processes left half-written in a folder; no other process may be writing there."""
    for partial in directory.glob(".*.partial"):
        with suppress(OSError):
            partial.unlink()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file whole or not at all.

    Raises:
        UserError: the file system refused.
    """
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
