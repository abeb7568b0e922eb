"""One process on a run: a file lock that the system releases when its holder ends, however it ends."""

import errno
import json
import logging
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from cifargan.errors import UserError

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
PATIENCE = 0.25  # s; `is_locked` holds the lock for a moment


class RunLock:
    """While entered, this process is the only one on a run.

    The lock is on the file `.lock`, whose existence means nothing. `.lock.holder` says who holds it: process, host, time.

    Args:
        directory: the run's folder; it must exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = _file_lock(directory, PATIENCE)

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.directory} is being trained by another process{_shown(_holder(self.directory))}: wait until it "
                "ends, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f"could not lock the run directory {self.directory}: {error.strerror}") from error
            log.warning("%s: no locks here (%s): start no second process on this run", self.directory, error.strerror)
        holder = {"pid": os.getpid(), "host": platform.node(), "start": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # without it, messages say less
            _holder_file(self.directory).write_text(json.dumps(holder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            _holder_file(self.directory).unlink()
        with suppress(OSError):
            self._lock.release()

    def forget(self) -> None:
        """Remove the file after a start that failed, so that no run is left; only while the lock is held."""
        with suppress(OSError):
            Path(self._lock.lock_file).unlink()


def is_locked(directory: Path) -> bool | None:
    """Whether a process is on a run; None where that is not known."""
    lock = _file_lock(directory, 0.0)
    if not Path(lock.lock_file).is_file():
        return None
    try:
        with lock:
            return False
    except Timeout:
        return True
    except OSError:
        return _is_alive(_holder(directory))


def _file_lock(directory: Path, timeout: float) -> FileLock:
    return FileLock(directory.absolute() / ".lock", timeout=timeout, thread_local=False)


def _holder_file(directory: Path) -> Path:
    return directory / ".lock.holder"


def _holder(directory: Path) -> dict[str, Any]:
    """Who holds the lock of a run, as far as it is known."""
    try:
        holder = json.loads(_holder_file(directory).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether a holder still runs; None for one on another host."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0 or holder.get("host") != platform.node():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _shown(holder: dict[str, Any]) -> str:
    known = {"pid", "host", "start"} <= holder.keys()
    return f" (process {holder['pid']} on {holder['host']}, since {holder['start']})" if known else ""
