"""One process on one run: a lock that the system takes away when its holder ends, however it ends."""

import errno
import json
import logging
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cifargan.errors import UserError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

TAKEN = (errno.EACCES, errno.EAGAIN)
ATTEMPTS = 5  # whoever looks whether a lock is held holds it himself for a moment
PAUSE = 0.05  # s

# A record lock does not keep out its own process, and is lost when that process closes any other handle of the file.
_held: set[Path] = set()


class RunLock:
    """While entered, this process is the only one on a run.

    A POSIX record lock on the file `.lock`: it works on network file systems as far as they lock at all, is not handed
    on to child processes, and is gone with its process, also after `kill -9`. The file itself means nothing.

    Args:
        directory: the run's folder; it must be there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = _file(directory)
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        if self.path in _held:
            raise UserError(f"{self.directory} is being trained by this very process")
        try:
            # The file may be removed between opening and locking it, by a start that failed: then the next one counts.
            while not self._take():
                pass
        except OSError as error:
            raise UserError(f"could not lock the run directory {self.directory}: {error.strerror}") from error
        _held.add(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _held.discard(self.path)
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = None

    def forget(self) -> None:
        """Remove the file, where the start failed and there is no run; to be called while the lock is held."""
        with suppress(OSError):
            self.path.unlink()

    def _take(self) -> bool:
        """Lock the file; whether it is still the one that is found under its name."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            for attempt in range(ATTEMPTS):
                if _lock(descriptor, self.directory):
                    break
                if attempt == ATTEMPTS - 1:
                    raise UserError(
                        f"{self.directory} is being trained by another process{_holder(descriptor)}: "
                        "wait until it ends, or stop it"
                    )
                time.sleep(PAUSE)
            if not self._is_there(descriptor):
                os.close(descriptor)
                return False
            who = json.dumps({"pid": os.getpid(), "host": platform.node()}).encode()
            with suppress(OSError):  # it only makes a message better
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, who, 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False


def is_locked(directory: Path) -> bool | None:
    """Whether some process is on a run; None where that cannot be told."""
    path = _file(directory)
    if path in _held:
        return True
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in TAKEN else None
    finally:
        os.close(descriptor)
    return False


def _file(directory: Path) -> Path:
    return directory.absolute() / ".lock"


def _lock(descriptor: int, directory: Path) -> bool:
    """Lock an open file; whether nobody else has. Where nothing can be locked, that is said and training goes on."""
    if sys.platform != "win32":
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            log.warning("%s: no locks here (%s): start no second process on this run", directory, error.strerror)
    return True


def _holder(descriptor: int) -> str:
    """Who holds a lock, as far as the file says."""
    try:
        who = json.loads(os.pread(descriptor, 1000, 0))
        return f" (process {who['pid']} on {who['host']})"
    except (OSError, ValueError, LookupError, TypeError):
        return ""
