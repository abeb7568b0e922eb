"""Decoded images kept between runs: one memory-mapped array and a JSON page beside it."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.untrusted import readable

logger = logging.getLogger(__name__)

_SIDECAR = "images.json"


def cache_dir() -> Path:
    """Where downloads and decoded images are kept for this user.

    Returns:
        `$CIFARGAN_CACHE` if set, else `$XDG_CACHE_HOME/cifargan`, else `~/.cache/cifargan`. It need not exist yet.
    """
    if own := os.environ.get("CIFARGAN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifargan"


@dataclass(frozen=True, kw_only=True)
class Cached:
    """What a cache gives back.

    Attributes:
        images: (N, 3, H, W) uint8, mapped copy-on-write from the file.
        info: The JSON value that was saved beside them.
    """

    images: NDArray[np.uint8]
    info: dict[str, Any]


class ArrayCache:
    """One array of images and what belongs to it, valid for one digest of where they came from.

    The JSON page names the array file and is replaced last, so a reader sees the old pair or the new one, whatever
    interrupts the writer and however many write at once.

    Args:
        folder: The folder of this one array; made when first saved to.
        label: What the images are, for the log.
    """

    def __init__(self, folder: Path, *, label: str) -> None:
        self.folder = folder
        self.label = label

    def load(self, digest: str) -> Cached | None:
        """Map the array.

        Args:
            digest: What the files look like now.

        Returns:
            The array, or None (told in the log) where none is stored, the files have changed, or it is damaged.
        """
        sidecar = self.folder / _SIDECAR
        if not sidecar.exists():
            return None
        try:
            page = json.loads(sidecar.read_text(encoding="utf-8"))
            if page["digest"] != digest:
                logger.info("%s: files have changed since they were cached; decoding them again", self.label)
                return None
            if page["array"] != _array_name(digest):
                raise ValueError("it names another file")
            images = np.load(self.folder / _array_name(digest), mmap_mode="c", allow_pickle=False)
            if list(images.shape) != page["shape"] or images.dtype != np.uint8:
                raise ValueError(f"an array of {images.dtype} {images.shape}")
            return Cached(images=images, info=page["info"])
        except Exception as error:  # a damaged file can raise anything
            reason = readable(str(error), limit=120)
            logger.warning("%s: the cache in %s is damaged (%s); decoding again", self.label, self.folder, reason)
            return None

    def save(self, digest: str, images: NDArray[np.uint8], info: dict[str, Any]) -> None:
        """Store the array; a disk that refuses costs a warning and no run.

        Args:
            digest: What the files looked like when they were decoded.
            images: (N, 3, H, W) uint8.
            info: Anything JSON can hold.
        """
        name = _array_name(digest)
        page = {"digest": digest, "array": name, "shape": list(images.shape), "info": info}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / name, lambda file: np.save(file, images, allow_pickle=False))
            write_atomically(self.folder / _SIDECAR, json.dumps(page).encode())
            for old in self.folder.glob("images-*.npy"):
                if old.name != name:
                    old.unlink()
        except (OSError, UserError) as error:
            logger.warning("%s: not cached in %s (%s); the next run decodes again", self.label, self.folder, error)


def _array_name(digest: str) -> str:
    return f"images-{digest[:16]}.npy"
