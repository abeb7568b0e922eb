"""The user's own images: a folder of class folders, or a zip of one."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifargan.data.cache import ArrayCache, Cached, cache_dir
from cifargan.data.decode import decode_files
from cifargan.data.sources import ImageSet, ImageSource, choose
from cifargan.data.storage import SPLIT_NAMES, Entry, Storage, is_image, open_storage
from cifargan.errors import UserError
from cifargan.untrusted import readable

logger = logging.getLogger(__name__)

_LAYOUT = "one sub-folder a class with its images (root/cat/1.png), or root/train/cat/1.png with data.splits=[train]"
_DECODER = 1  # raised when `decode` gives other pixels for the same file, so that old caches are not taken


@dataclass(frozen=True, kw_only=True)
class _Split:
    """One decoded split."""

    images: NDArray[np.uint8]
    labels: list[int]
    classes: list[str]
    broken: list[tuple[str, str]]  # file, what is wrong with it


class Folder(ImageSource):
    """PNG, JPEG and WebP files of any size and mode; the folders' names are the classes.

    Files are looked for at any depth in a class folder. They are decoded once, into a cache that is used as long as no
    file is added, removed or rewritten.

    Args:
        root: The folder that holds one folder a class, or a zip of it.
        splits: Which folders between root and the classes to join, in this order; empty: none there, but where root
            holds nothing except folders named like splits, `train` is taken.
        classes: Which classes, by folder name, numbered in this order; empty: all, sorted.
        image_size: H = W; the square in an image's middle is resized to it, bicubic.
        flip: Whether a mirrored image is as good as the original.
        drop_low_contrast: Leave out images that scikit-image calls low in contrast at this `fraction_threshold`.
        on_broken: What to do about a file that cannot be decoded: stop (error), or leave it out (skip).
        cache: Where decoded images are kept; null: `folder` in the user's cache folder.
    """

    def __init__(
        self,
        *,
        root: str,
        splits: list[str] = [],  # noqa: B006 - the base class copies it
        classes: list[str] = [],  # noqa: B006
        image_size: int = 32,
        flip: bool = True,
        drop_low_contrast: float = 0.0,
        on_broken: Literal["skip", "error"] = "error",
        cache: str | None = None,
    ) -> None:
        super().__init__(
            splits=splits, classes=classes, image_size=image_size, flip=flip, drop_low_contrast=drop_low_contrast
        )
        self.root = Path(root).expanduser().resolve()
        self.cache = Path(cache).expanduser() if cache else cache_dir() / "folder"
        self._on_broken = {"skip": self._skip, "error": self._refuse}[on_broken]

    def load(self) -> ImageSet:
        """Read the images from the cache, or decode them into it.

        Raises:
            UserError: The folder is not laid out as it should be, cannot be read, or holds a broken file that may not
                be skipped.
        """
        with open_storage(self.root) as storage:
            try:
                splits = self._choose_splits(storage)
                parts = [self._load_split(storage, split) for split in splits]
            except OSError as error:
                raise UserError(
                    f"data.root: cannot read {readable(str(error.filename or self.root))}: {error.strerror or error}"
                ) from error
        for split, part in zip(splits, parts, strict=True):
            if odd := set(part.classes) ^ set(parts[0].classes):
                raise UserError(f"data.splits: {splits[0]} and {split} differ in the class {sorted(odd)[0]!r}")
        broken = [file for part in parts for file, _ in part.broken]
        if broken:
            logger.warning("%s: %d broken files left out: %s", self.root, len(broken), _first(broken))
        return self._assemble(
            [_tensors(part) for part in parts],
            name=self.root.name.removesuffix(".zip"),
            splits=[split or "all" for split in splits],
            classes=parts[0].classes,
            skipped=len(broken),
        )

    def _choose_splits(self, storage: Storage) -> list[str]:
        """Name the folders that hold the class folders; "" is root itself."""
        folders = storage.folders("")
        if self.splits:
            return choose(self.splits, folders, setting="data.splits", kind="folder")
        if "train" in folders and SPLIT_NAMES.issuperset(folders):
            logger.info("%s holds %s: taking train (data.splits says otherwise)", self.root, ", ".join(folders))
            return ["train"]
        return [""]

    def _load_split(self, storage: Storage, split: str) -> _Split:
        classes = storage.folders(split)
        depth = 1 if split else 0  # parts of a file's name before its class
        entries = storage.files(split)
        inside = [entry for entry in entries if entry.name.count("/") > depth]
        files = [entry for entry in inside if is_image(entry.name)]
        where = self.root / split
        shown = readable(str(where))
        if not classes:
            loose = f"{len(entries)} files but " if entries else ""
            raise UserError(f"data.root: {shown} holds {loose}no folder; expected {_LAYOUT}")
        if not files:
            raise UserError(f"data.root: no PNG, JPEG or WebP file in the class folders of {shown}; expected {_LAYOUT}")
        if ignored := len(entries) - len(files):
            logger.info("%s: %d files ignored that are no images or lie in no class folder", shown, ignored)

        digest = hashlib.sha256(json.dumps([classes, files]).encode()).hexdigest()
        key = hashlib.sha256(json.dumps([str(self.root), split, self.image_size, _DECODER]).encode()).hexdigest()
        cache = ArrayCache(self.cache / key[:16], label=shown)
        if (cached := cache.load(digest)) and (split_of := self._believed(cached, files, classes, depth)):
            for file, reason in split_of.broken:
                self._on_broken(file, reason)
            return split_of

        broken: list[tuple[str, str]] = []

        def note(file: str, reason: str) -> None:
            self._on_broken(file, reason)
            broken.append((file, reason))

        names = [entry.name for entry in files]
        logger.info("%s: decoding %d images of %d classes", shown, len(files), len(classes))
        images, good = decode_files(
            storage, names, image_size=self.image_size, label=readable(where.name), on_broken=note
        )
        labels = _labels([name for name, fine in zip(names, good, strict=True) if fine], classes, depth)
        cache.save(digest, images, {"labels": labels, "broken": broken})
        return _Split(images=images, labels=labels, classes=classes, broken=broken)

    def _believed(self, cached: Cached, files: list[Entry], classes: list[str], depth: int) -> _Split | None:
        """What a cache says, if that is what these files could have given; told, and None, if it is not."""
        try:
            broken = [(str(file), str(reason)) for file, reason in cached.info["broken"]]
            missing = {file for file, _ in broken}
            labels = _labels([entry.name for entry in files if entry.name not in missing], classes, depth)
            fits = cached.images.shape == (len(labels), 3, self.image_size, self.image_size)
            if fits and labels == cached.info["labels"]:
                return _Split(images=cached.images, labels=labels, classes=classes, broken=broken)
        except (TypeError, ValueError, LookupError):
            pass
        logger.warning("%s: the cache is of other images; decoding again", readable(str(self.root)))
        return None

    def _skip(self, file: str, reason: str) -> None:
        logger.debug("%s left out: %s", readable(file), readable(reason))

    def _refuse(self, file: str, reason: str) -> None:
        where = readable(str(self.root / file))
        raise UserError(f"{where} is broken ({readable(reason)}); mend or remove it, or set data.on_broken=skip")


def _tensors(split: _Split) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(split.images), torch.tensor(split.labels, dtype=torch.int64)


def _labels(names: Sequence[str], classes: list[str], depth: int) -> list[int]:
    number = {name: label for label, name in enumerate(classes)}
    return [number[name.split("/")[depth]] for name in names]


def _first(names: list[str]) -> str:
    return ", ".join(readable(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
