"""Downloads that go on where they broke off, and are believed only when their checksum is right."""

import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cifargan.errors import UserError
from cifargan.progress import Progress

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

CHUNK = 2**18  # bytes read at a time
MEGABYTE = 10**6
PATIENCE = 30.0  # s without a byte after which a server counts as out of reach
ATTEMPTS = 10  # connections in all, as long as each brings more
PAUSE = 1.0  # s before a broken connection is tried again
WAIT = 0.5  # s between looks at whether another process is done


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file as its authors publish it.

    Args:
        title: what it is, for the log.
        url: where it is.
        algorithm: of the checksum, as hashlib calls it.
        checksum: in hex.
    """

    title: str
    url: str
    algorithm: str
    checksum: str

    def is_whole(self, path: Path) -> bool:
        """Whether a file is there and has the checksum."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            # CIFAR-10 is published with an MD5; it is here against accidents.
            digest = hashlib.file_digest(file, lambda: hashlib.new(self.algorithm, usedforsecurity=False))
        return digest.hexdigest() == self.checksum


def partial_path(path: Path) -> Path:
    """Where what has come of a download is kept until it is whole."""
    return path.with_name(f"{path.name}.part")


def fetch(published: Published, path: Path) -> None:
    """Bring a file, going on with what an earlier call left where the server can.

    What has come lies in `PATH.part`, also after a failure, and is renamed when it is whole and right. A wrong one is
    removed. Where another process is bringing it, that is waited for.

    Args:
        published: what to bring.
        path: where to; its folder is made.

    Raises:
        UserError: the server is out of reach, broke off again and again, or sent something else.
        OSError: the file cannot be stored, the disk being full among the reasons.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    with _alone(partial) as file:
        if not published.is_whole(path):  # unless another process has just brought it
            _fill(published, file, partial)
            file.flush()
            os.fsync(file.fileno())
            if not published.is_whole(partial):
                partial.unlink()
                raise UserError(
                    f"what came from {published.url} is not the published file (wrong {published.algorithm.upper()}); "
                    "it was removed"
                )
            partial.replace(path)


@contextmanager
def _alone(partial: Path) -> Iterator[IO[bytes]]:
    """A file to add to, which no other process adds to meanwhile; it is waited for. Goes away where nothing was added."""
    told = False
    while True:
        with partial.open("ab") as file:
            if _locked(file):
                if not _is_there(file, partial):
                    continue  # whoever had it until now has given it another name
                try:
                    yield file
                finally:
                    if _is_there(file, partial) and not partial.stat().st_size:
                        partial.unlink()
                return
        if not told:
            logger.info("another process is fetching %s: waiting for it", partial)
            told = True
        time.sleep(WAIT)


def _locked(file: IO[bytes]) -> bool:
    """Lock a file until it is closed, where no other process has; some network file systems cannot, and it is left."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            logger.debug("%s cannot be locked: %s", file.name, error)
    return True


def _is_there(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _fill(published: Published, file: IO[bytes], partial: Path) -> None:
    """Append until the server has no more, over as many connections as it takes.

    Raises:
        UserError: a connection brought nothing new, or there were too many.
    """
    furthest = -1
    for attempt in range(ATTEMPTS):
        have = partial.stat().st_size
        try:
            _receive(published, file, have)
            return
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                if published.is_whole(partial):
                    return
                file.truncate(0)  # longer than the published file: it is of something else
                continue
            raise UserError(f"{published.url}: {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, _CutError) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
            now = partial.stat().st_size
            if now <= furthest or now == 0 or attempt == ATTEMPTS - 1:
                kept = f"; {now / MEGABYTE:.1f} MB are kept in {partial} and gone on with" if now else ""
                raise UserError(f"{published.url}: {reason}{kept}") from error
            furthest = now
            logger.warning("%s: %s after %.1f MB; trying again", published.title, reason, now / MEGABYTE)
            time.sleep(PAUSE)


class _CutError(Exception):
    """The server hung up before everything was there."""


def _receive(published: Published, file: IO[bytes], have: int) -> None:
    """Append what one connection brings."""
    headers = {"User-Agent": "cifargan"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(published.url, headers=headers)  # noqa: S310 - our address
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:  # noqa: S310
        if have and not _continues(reply, have):
            logger.info("%s: the server cannot go on in the middle; beginning anew", published.title)
            file.truncate(0)
            have = 0
        length = int(reply.headers.get("Content-Length") or 0)
        _require_space(Path(file.name), length)
        if have:
            logger.info("%s: going on after %.1f MB", published.title, have / MEGABYTE)
        received = 0
        with Progress(-(-length // MEGABYTE), label=published.title, unit="MB") as progress:
            try:
                while chunk := reply.read(CHUNK):
                    file.write(chunk)
                    received += len(chunk)
                    progress.update(-(-received // MEGABYTE) - progress.done)
            finally:
                file.flush()  # the file's size says where to go on
    if received < length:
        raise _CutError("the connection broke off")


def _continues(reply: http.client.HTTPResponse, have: int) -> bool:
    """Whether a reply is the rest of the file, and not all of it or another part."""
    begins = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range") or "")
    return reply.status == http.HTTPStatus.PARTIAL_CONTENT and begins is not None and int(begins[1]) == have


def _require_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        reason = f"{size / MEGABYTE:,.0f} MB are to come and {free / MEGABYTE:,.0f} MB are free"
        raise OSError(errno.ENOSPC, reason, str(path))
