"""Keep decoded images between runs: one memory-mapped array and a JSON file beside it."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.untrusted import readable

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Folder of this user's downloads and decoded images.

    Returns:
        `$CIFARGAN_CACHE` if set, else `$XDG_CACHE_HOME/cifargan`, else `~/.cache/cifargan`. It need not exist yet.
    """
    if own := os.environ.get("CIFARGAN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifargan"


class DecodedCache:
    """The decoded images of one list of files, valid until one of the files changes.

    The JSON file is replaced last and names its array by the digest, so a reader sees the old pair or the new one, even
    if the writer is killed or several write at once.

    Args:
        folder: The folder of this one array; created by the first save.
        label: What the images are, for the log.
    """

    def __init__(self, folder: Path, *, label: str) -> None:
        self.folder = folder
        self.label = label
        self._page = folder / "images.json"

    def load(
        self, digest: str, names: Sequence[str], *, image_size: int
    ) -> tuple[NDArray[np.uint8], dict[str, str]] | None:
        """Map the images.

        Args:
            digest: Of the files as they are now.
            names: N file names.
            image_size: S.

        Returns:
            (M, 3, S, S) uint8 images, mapped copy-on-write, and the N - M broken files with their reasons. None, with
            a line in the log, if the files have changed or the cache is damaged; None if there is no cache.
        """
        if not self._page.exists():
            return None
        try:
            page = json.loads(self._page.read_text(encoding="utf-8"))
            if page["digest"] != digest:
                logger.info("%s: files have changed since they were cached; decoding them again", self.label)
                return None
            broken = {str(name): str(reason) for name, reason in page["broken"].items()}
            images = np.load(self._array(digest), mmap_mode="c", allow_pickle=False)
            expected = (len(names) - len(broken), 3, image_size, image_size)
            if not broken.keys() <= {*names} or images.dtype != np.uint8 or images.shape != expected:
                raise ValueError(f"an array of {images.dtype} {images.shape}")
            return images, broken
        except Exception as error:  # a damaged file can raise anything
            reason = readable(str(error), limit=120)
            logger.warning("%s: the cache in %s is damaged (%s); decoding again", self.label, self.folder, reason)
            return None

    def save(self, digest: str, images: NDArray[np.uint8], broken: dict[str, str]) -> None:
        """Store what `load` gives. If the disk refuses, log a warning and go on."""
        array = self._array(digest)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(array, lambda file: np.save(file, images, allow_pickle=False))
            write_atomically(self._page, json.dumps({"digest": digest, "broken": broken}).encode())
            for old in self.folder.glob("images-*.npy"):
                if old != array:
                    old.unlink()
        except (OSError, UserError) as error:
            logger.warning("%s: not cached in %s (%s); the next run decodes again", self.label, self.folder, error)

    def _array(self, digest: str) -> Path:
        return self.folder / f"images-{digest[:16]}.npy"
