"""What may lie in the folder of a run that somebody was sent."""

import os
from collections.abc import Iterator
from pathlib import Path

from cifargan.errors import UserError
from cifargan.untrusted import readable


def require_no_pipes(folder: Path) -> None:
    """Check that a folder holds nothing that never ends or never begins: pipes, sockets, devices, and links to them.

    Raises:
        UserError: it does.
    """
    for entry in _entries(folder):
        # A link that leads nowhere does no harm.
        if not entry.is_file() and not entry.is_dir() and Path(entry.path).exists():
            raise UserError(f"{readable(entry.path)} is neither a file nor a folder: remove it")


def require_no_links_out(folder: Path) -> None:
    """Check that nothing in a folder is a link to the outside, through which its files would be written elsewhere.

    The folder itself may be reached through links.

    Raises:
        UserError: something is.
    """
    own = folder.resolve()
    for entry in _entries(folder):
        if entry.is_symlink() and own not in (target := Path(os.path.realpath(entry.path)), *target.parents):
            raise UserError(
                f"{readable(entry.path)} is a link to {readable(str(target))}, and a run writes into its own folder "
                "alone: put a copy in its place, or remove it"
            )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that lies in a folder and the folders in it; links are given and not followed.

    Raises:
        UserError: one cannot be read.
    """
    pending = [os.fspath(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                inside = list(entries)
        except FileNotFoundError:  # a run that is going on removes what it no longer needs
            continue
        except OSError as error:
            raise UserError(f"cannot read {readable(str(error.filename))}: {error.strerror}") from error
        yield from inside
        pending += [entry.path for entry in inside if entry.is_dir(follow_symlinks=False)]
