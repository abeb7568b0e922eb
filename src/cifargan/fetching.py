"""Download a published file once: checksum, progress bar, retries, and one process at a time (pooch, filelock)."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from tqdm import tqdm

from cifargan.errors import UserError

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

RETRIES = 2  # after a connection that failed or a file with a wrong checksum
SILENCE = 30.0  # s without a byte after which a server counts as out of reach


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
        """Whether a file exists and has the checksum."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            # CIFAR-10 is published with an MD5, which here guards against accidents.
            digest = hashlib.file_digest(file, lambda: hashlib.new(self.algorithm, usedforsecurity=False))
        return digest.hexdigest() == self.checksum


def fetch(published: Published, path: Path) -> None:
    """Download a file, unless another process has just done so; the file appears whole and checked, or not at all.

    Args:
        published: what to download.
        path: where to; its folder is made, and a file that is already there is replaced.

    Raises:
        UserError: the server is out of reach, or sends something else.
        OSError: the file cannot be stored.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("another process is fetching %s: waiting for it", path)
        lock.acquire()
    try:
        if not published.is_whole(path):
            _download(published, path)
    finally:
        lock.release()


def _download(published: Published, path: Path) -> None:
    import pooch  # here, since a download alone needs them and they take a while to import
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    # pooch asks a bar whether it is true, which one of an unknown total cannot say; it sets the total itself.
    bar = tqdm(total=1, desc=published.title, unit="B", unit_scale=True, leave=False, disable=None)
    files = pooch.create(
        path=path.parent,
        base_url="",
        registry={path.name: f"{published.algorithm}:{published.checksum}"},
        urls={path.name: published.url},
        retry_if_failed=RETRIES,
    )
    try:
        with bar:
            files.fetch(path.name, downloader=pooch.HTTPDownloader(progressbar=bar, timeout=SILENCE))
    except requests.RequestException as error:
        raise UserError(f"{published.url}: {_reason(error)}") from error
    except ValueError as error:  # pooch's word for a wrong checksum
        raise UserError(
            f"{published.url} sent another file than the published one (wrong {published.algorithm.upper()}); "
            "it was removed"
        ) from error
    path.chmod(0o644)  # pooch makes it readable by its owner alone, but users may share a cache


def _reason(error: "requests.RequestException") -> str:
    """What went wrong, without the layers of libraries around it."""
    if error.response is not None:
        with error.response:  # it holds the connection
            return f"{error.response.status_code} {error.response.reason}"
    cause = error.__context__
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return str(cause or error)
