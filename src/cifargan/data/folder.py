"""The user's own images: a folder, a zip or an array; class folders for training, any layout for evaluation."""

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cifargan.data.cache import DecodedCache, cache_dir
from cifargan.data.decode import FORMATS, decode_files
from cifargan.data.sources import ImageSet, ImageSource, choose
from cifargan.data.storage import SPLIT_NAMES, Entry, Storage, is_image, open_storage
from cifargan.errors import UserError
from cifargan.untrusted import ArrayFile, readable, refusing, require_names

logger = logging.getLogger(__name__)

LAYOUT = "one sub-folder per class with its images (root/cat/1.png), or root/train/cat/1.png with data.splits=[train]"
DECODER = 1  # raise it when `decode` changes the pixels of some file, so that old caches are not used
MAX_EDGE = 4096  # pixels, of images to be evaluated


class Folder(ImageSource):
    """PNG, JPEG and WebP files of any size and mode, in class folders.

    Files may lie at any depth in a class folder. They are decoded once, into a cache that is used until a file is added,
    removed or rewritten.

    Args:
        root: The folder that holds one folder per class, or a zip of it.
        splits: The folders between root and the classes to join, in this order. Empty: root holds the classes, or, if
            it holds only folders named like splits, `train` is used.
        classes: The classes to keep, by folder name; labels follow this order. Empty: all, sorted.
        image_size: H = W; the square in the middle of an image is resized to it, bicubic.
        flip: See `ImageSource`.
        drop_low_contrast: See `ImageSource`.
        on_broken: What to do about a file that cannot be decoded: stop (error), or leave it out (skip).
        cache: Folder of the decoded images; null: `folder` in the user's cache folder.
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
        self.skips_broken = on_broken == "skip"

    def load(self) -> ImageSet:
        """Read the images from the cache, or decode them into it.

        Raises:
            UserError: The folder has another layout, cannot be read, or holds a broken file that may not be skipped.
        """
        with open_storage(self.root) as storage:
            splits = self._choose_splits(storage)
            classes = storage.folders(splits[0])
            for split in splits[1:]:
                if odd := set(classes) ^ set(storage.folders(split)):
                    raise UserError(f"data.splits: {splits[0]} and {split} differ in the class {sorted(odd)[0]!r}")
            broken: list[str] = []
            parts = [self._load_split(storage, split, broken) for split in splits]
        if broken:
            names = ", ".join(map(readable, broken[:5])) + (", ..." if len(broken) > 5 else "")
            logger.warning("%s: %d broken files left out: %s", self.root, len(broken), names)
        return self._assemble(
            parts,
            name=self.root.name.removesuffix(".zip"),
            splits=[split or "all" for split in splits],
            classes=classes,
            skipped=len(broken),
        )

    def _choose_splits(self, storage: Storage) -> list[str]:
        """The folders that hold the class folders; "" is root itself."""
        folders = storage.folders("")
        if self.splits:
            return choose(self.splits, folders, setting="data.splits", kind="folder")
        if "train" in folders and SPLIT_NAMES.issuperset(folders):
            logger.info("%s holds %s: using train (set data.splits for others)", self.root, ", ".join(folders))
            return ["train"]
        return [""]

    def _load_split(self, storage: Storage, split: str, broken: list[str]) -> tuple[Tensor, Tensor]:
        """The (N, 3, H, W) images and (N,) labels of a split; its broken files are added to `broken`."""
        where = self.root / split
        shown = readable(str(where))
        classes = storage.folders(split)
        entries = storage.files(split)
        files = class_images(entries, split)
        if not classes:
            loose = f"{len(entries)} files but " if entries else ""
            raise UserError(f"data.root: {shown} holds {loose}no folder; expected {LAYOUT}")
        if not files:
            raise UserError(f"data.root: no PNG, JPEG or WebP file in the class folders of {shown}; expected {LAYOUT}")
        if ignored := len(entries) - len(files):
            logger.info("%s: %d files ignored that are not images or not in a class folder", shown, ignored)

        names = [entry.name for entry in files]
        digest = hashlib.sha256(json.dumps([classes, files]).encode()).hexdigest()
        key = hashlib.sha256(json.dumps([str(self.root), split, self.image_size, DECODER]).encode()).hexdigest()
        cache = DecodedCache(self.cache / key[:16], label=shown)
        if cached := cache.load(digest, names, image_size=self.image_size):
            images, reasons = cached
            for file, reason in reasons.items():
                self._on_broken(file, reason)
        else:
            reasons = {}

            def note(file: str, reason: str) -> None:
                self._on_broken(file, reason)
                reasons[file] = reason

            logger.info("%s: decoding %d images of %d classes", shown, len(files), len(classes))
            label = readable(where.name)
            images, _ = decode_files(storage, names, image_size=self.image_size, label=label, on_broken=note)
            cache.save(digest, images, reasons)
        broken += reasons
        labels = class_labels([name for name in names if name not in reasons], classes, split)
        return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64)

    def _on_broken(self, file: str, reason: str) -> None:
        if not self.skips_broken:
            where = readable(str(self.root / file))
            raise UserError(f"{where} is broken ({readable(reason)}); repair or remove it, or set data.on_broken=skip")
        logger.debug("%s left out: %s", readable(file), readable(reason))


def class_images(entries: Sequence[Entry], split: str) -> list[Entry]:
    """The image files among `entries` that lie in a class folder of `split` ("" is the top)."""
    depth = 1 if split else 0
    return [entry for entry in entries if is_image(entry.name) and entry.name.count("/") > depth]


def class_labels(names: Sequence[str], classes: Sequence[str], split: str) -> list[int]:
    """The label of each file, by the class folder of `split` that it lies in."""
    number = {name: label for label, name in enumerate(classes)}
    return [number[name.split("/")[1 if split else 0]] for name in names]


def load_images(path: Path) -> ImageSet:
    """Read images to be evaluated, never resized.

    In a folder or zip they may lie anywhere; if each lies in a folder of the top level, those are the classes. An
    `.npz` holds `images` (N, H, W, 3) uint8, or that as its first array, and may hold `labels` (N,) and `classes` (K,).

    Args:
        path: A folder, a zip or an `.npz` file.

    Returns:
        All images; one class called `all` if there are no classes.

    Raises:
        UserError: There is nothing there, or images are broken, not square, or not all of one size.
    """
    if path.suffix == ".npz" and path.is_file():
        images, labels, classes = _from_arrays(path)
    else:
        with open_storage(path, setting="images") as storage:
            images, labels, classes = _from_files(storage)
    require_names(classes, readable(str(path)))
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(images)),
        labels=torch.as_tensor(labels, dtype=torch.int64),
        classes=tuple(classes),
        name=path.stem,
        splits=("all",),
        flip=False,
    )


def _from_files(storage: Storage) -> tuple[NDArray[np.uint8], list[int], Sequence[str]]:
    names = [entry.name for entry in storage.files("") if is_image(entry.name)]
    if not names:
        raise UserError(f"{readable(str(storage.path))}: no PNG, JPEG or WebP file in it")

    def refuse(file: str, reason: str) -> NoReturn:
        raise UserError(f"{readable(str(storage.path / file))} is broken ({readable(reason)}): repair or remove it")

    try:
        data = storage.read(names[0])
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as first:
            size = first.width
    except Exception:  # a damaged file makes PIL raise almost anything; `decode_files` gives the reason
        size = 1
    if size > MAX_EDGE:
        refuse(names[0], f"it is wider than {MAX_EDGE} pixels")
    label = readable(storage.path.name)
    images, _ = decode_files(storage, names, image_size=size, label=label, on_broken=refuse, resample=False)
    if not all("/" in name for name in names):
        return images, [0] * len(names), ["all"]
    classes = sorted({name.split("/")[0] for name in names})
    return images, class_labels(names, classes, ""), classes


def _from_arrays(path: Path) -> tuple[NDArray[np.uint8], list[int], Sequence[str]]:
    shown = readable(str(path))
    with refusing(f"{shown} is damaged or not an .npz file of images: create it again"), ArrayFile(path) as file:
        name = "images" if "images" in file else file.names[0]
        # Checked before it is read, so that no other array is read at all.
        shape, dtype = file.kind(name)
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or shape[1] != shape[2] or 0 in shape:
            raise UserError(
                f"{shown}: expected square images as uint8 (N, H, H, 3) in `images`, found {readable(str(dtype))} {shape}"
            )
        images = file.read(name)
        classes = [str(one) for one in file.read("classes")] if "classes" in file else []
        labels = [int(label) for label in file.read("labels")] if classes and "labels" in file else []
    if labels and (len(labels) != len(images) or not set(labels) <= set(range(len(classes)))):
        raise UserError(f"{shown}: `labels` must hold one number from 0 to {len(classes) - 1} for each image")
    if not labels:
        classes, labels = ["all"], [0] * len(images)
    return images.transpose(0, 3, 1, 2), labels, classes  # (N, H, W, 3) -> (N, 3, H, W)
