"""CIFAR-10 as its authors publish it, fetched and verified by torchvision."""

import http.client
import logging
import socket
import urllib.error
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from cifargan.data.cache import cache_dir
from cifargan.data.sources import ImageSet, ImageSource, choose, resize
from cifargan.errors import UserError

logger = logging.getLogger(__name__)

_TIMEOUT = 30.0  # seconds of silence after which a server counts as out of reach


class CIFAR10(ImageSource):
    """The 60,000 images of CIFAR-10 (Krizhevsky 2009): 32x32, 10 classes, 50,000 `train` and 10,000 `test`.

    Args:
        root: Folder of the archive and what is unpacked from it; null: `cifar10` in the user's cache folder.
        splits: Any of `train` and `test`, joined in this order.
        classes: Which classes, by name; empty: all ten.
        image_size: H = W; any other than 32 is resized to, bicubic.
        flip: Whether a mirrored image is as good as the original.
        drop_low_contrast: Leave out images that scikit-image calls low in contrast at this `fraction_threshold`.
        download: Whether the archive (163 MiB) may be fetched when it is not in `root`.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        splits: list[str] = ["train"],  # noqa: B006 - the base class copies it
        classes: list[str] = [],  # noqa: B006
        image_size: int = 32,
        flip: bool = True,
        drop_low_contrast: float = 0.0,
        download: bool = True,
    ) -> None:
        super().__init__(
            splits=splits, classes=classes, image_size=image_size, flip=flip, drop_low_contrast=drop_low_contrast
        )
        if not choose(self.splits, ["train", "test"], setting="data.splits", kind="split"):
            raise UserError("data.splits: name at least one of train, test")
        self.root = Path(root).expanduser() if root else cache_dir() / "cifar10"
        self.download = download
        self._archive = self.root / datasets.CIFAR10.filename

    def load(self) -> ImageSet:
        """Read the splits, fetching the archive first where it is needed and allowed.

        Raises:
            UserError: The archive is not there, cannot be fetched, or is damaged.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        names: list[str] = []
        for split in self.splits:
            data = self._open(train=split == "train")
            images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()  # (N, 32, 32, 3) -> (N, 3, 32, 32)
            parts.append((resize(images, self.image_size), torch.tensor(data.targets, dtype=torch.int64)))
            names = data.classes
        return self._assemble(parts, name="cifar10", splits=self.splits, classes=names)

    def _open(self, *, train: bool) -> datasets.CIFAR10:
        with warnings.catch_warnings():
            # The batches were pickled by an early NumPy, in a way that NumPy 2.4.0 to 2.4.4 warn of.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            try:
                return datasets.CIFAR10(self.root, train=train)
            except RuntimeError:
                self._fetch()
            try:
                return datasets.CIFAR10(self.root, train=train)
            except RuntimeError as error:
                unpacked = self.root / datasets.CIFAR10.base_folder
                raise UserError(f"CIFAR-10 in {unpacked} is damaged: delete that folder and try again") from error

    def _fetch(self) -> None:
        """Unpack the archive if it is there and whole, fetch it otherwise."""
        by_hand = (
            f"copy {self._archive.name} to {self._archive} by hand, or use data=folder data.root=... or data=digits"
        )
        found = self._archive.exists()
        whole = check_integrity(self._archive, datasets.CIFAR10.tgz_md5)
        state = "is incomplete or damaged" if found else "is not there"
        if not whole and not self.download:
            raise UserError(f"CIFAR-10: {self._archive} {state} and data.download=false: {by_hand}")
        if found and not whole:
            size = self._archive.stat().st_size
            logger.warning("CIFAR-10: %s (%d bytes) is incomplete or damaged; fetching it again", self._archive, size)
        url, md5 = datasets.CIFAR10.url, datasets.CIFAR10.tgz_md5
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _patience(_TIMEOUT):
                # An archive that is whole is unpacked without a word to the server.
                download_and_extract_archive(url, self.root, filename=self._archive.name, md5=md5)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(f"CIFAR-10 could not be fetched from {url} ({reason}): {by_hand}") from error
        except OSError as error:
            raise UserError(f"CIFAR-10 cannot be stored in data.root={self.root}: {error}") from error
        except RuntimeError as error:
            raise UserError(
                f"CIFAR-10: what came from {url} is incomplete or not the archive (wrong MD5): try again, or {by_hand}"
            ) from error


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on a silent server; torchvision sets no time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
