"""CIFAR-10 as its authors publish it: downloaded, verified, and read by torchvision."""

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import extract_archive

from cifargan.data.cache import cache_dir
from cifargan.data.sources import ImageSet, ImageSource, choose_train_or_test, resize
from cifargan.errors import UserError
from cifargan.fetching import Published, fetch

logger = logging.getLogger(__name__)


class CIFAR10(ImageSource):
    """The 60,000 images of CIFAR-10 (Krizhevsky 2009): 32x32, 10 classes, 50,000 `train` and 10,000 `test`.

    Args:
        root: Folder of the archive and its unpacked files; null: `cifar10` in the user's cache folder.
        splits: Any of `train` and `test`, joined in this order.
        classes: The classes to keep, by name; empty: all ten.
        image_size: H = W; other sizes than 32 are resized to, bicubic.
        flip: See `ImageSource`.
        drop_low_contrast: See `ImageSource`.
        download: Whether the archive (163 MiB) may be downloaded if it is not in `root`.
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
        choose_train_or_test(self.splits)
        self.root = Path(root).expanduser() if root else cache_dir() / "cifar10"
        self.download = download
        self.archive = self.root / datasets.CIFAR10.filename

    def load(self) -> ImageSet:
        """Read the splits; download the archive first if it is needed and allowed.

        Raises:
            UserError: The archive is missing, cannot be downloaded, or is damaged.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        names: list[str] = []
        for split in self.splits:
            data = self._open(train=split == "train")
            images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()  # (N, 32, 32, 3) -> (N, 3, 32, 32)
            parts.append((resize(images, self.image_size), torch.tensor(data.targets, dtype=torch.int64)))
            names = data.classes
        return self._assemble(parts, name="cifar10", splits=self.splits, classes=names)

    def is_unpacked(self) -> bool:
        """Whether the archive's files exist; they are verified when they are read."""
        names = [name for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list)]
        return all((self.root / datasets.CIFAR10.base_folder / name).is_file() for name in names)

    def _open(self, *, train: bool) -> datasets.CIFAR10:
        with warnings.catch_warnings():
            # The batches were pickled by an early NumPy, in a way that NumPy 2.4.0 to 2.4.4 warn about.
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
        """Unpack the archive; download it first unless it is there and whole."""
        by_hand = f"copy {self.archive.name} to {self.archive} by hand, or use data=folder data.root=... or data=digits"
        published = Published(
            title="CIFAR-10", url=datasets.CIFAR10.url, algorithm="md5", checksum=datasets.CIFAR10.tgz_md5
        )
        whole = published.is_whole(self.archive)
        state = "is incomplete or damaged" if self.archive.exists() else "is missing"
        if not whole and not self.download:
            raise UserError(f"CIFAR-10: {self.archive} {state} and data.download=false: {by_hand}")
        try:
            if not whole:
                logger.info("CIFAR-10: %s %s; downloading it (170 MB)", self.archive, state)
                fetch(published, self.archive)
            extract_archive(str(self.archive), str(self.root))
        except UserError as error:
            raise UserError(f"CIFAR-10 could not be fetched: {error}: try again, or {by_hand}") from error
        except OSError as error:
            raise UserError(f"CIFAR-10 cannot be stored in data.root={self.root}: {error}") from error
