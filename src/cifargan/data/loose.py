"""Anyone's images, as they are: a folder, a zip or an array, with classes or without, never resized."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cifargan.data.decode import decode_files
from cifargan.data.sources import ImageSet
from cifargan.data.storage import BrokenFileError, Storage, is_image, open_storage
from cifargan.errors import UserError


def load_images(path: Path) -> ImageSet:
    """Read images to be judged.

    In a folder or zip they may lie anywhere; where each lies in a folder of the top level, those are the classes. An
    `.npz` holds `images` (N, H, W, 3) uint8, or that as its first array, and may hold `labels` (N,) and `classes` (K,).

    Args:
        path: a folder, a zip or an `.npz` file.

    Returns:
        All images; one class called `all` where there are none.

    Raises:
        UserError: there is nothing there, or images that are broken, not square, or not all of one size.
    """
    if path.suffix == ".npz" and path.is_file():
        images, labels, classes = _from_arrays(path)
    else:
        with open_storage(path, setting="images") as storage:
            images, labels, classes = _from_files(storage)
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(images)),
        labels=torch.as_tensor(labels, dtype=torch.int64),
        classes=classes,
        name=path.stem,
        splits=("all",),
        flip=False,
    )


def _from_files(storage: Storage) -> tuple[NDArray[np.uint8], list[int], tuple[str, ...]]:
    where = storage.path
    names = [entry.name for entry in storage.files("") if is_image(entry.name)]
    if not names:
        raise UserError(f"{where}: no PNG, JPEG or WebP file in it")

    def refuse(file: str, reason: str) -> None:
        raise UserError(f"{where / file} is broken ({reason}): mend or remove it")

    try:
        with Image.open(io.BytesIO(storage.read(names[0]))) as first:
            size = first.width
    except (BrokenFileError, UnidentifiedImageError, OSError) as error:
        refuse(names[0], str(error))
    images, _ = decode_files(storage, names, image_size=size, label=where.name, on_broken=refuse, resample=False)
    if not all("/" in name for name in names):
        return images, [0] * len(names), ("all",)
    owners = [name.split("/")[0] for name in names]
    classes = tuple(sorted(set(owners)))
    return images, [classes.index(owner) for owner in owners], classes


def _from_arrays(path: Path) -> tuple[NDArray[np.uint8], list[int], tuple[str, ...]]:
    try:
        # Opened here, because NumPy leaves a file that is no zip open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            images = file["images" if "images" in file else file.files[0]]
            classes = tuple(str(name) for name in file["classes"]) if "classes" in file else ()
            labels = [int(label) for label in file["labels"]] if classes and "labels" in file else []
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or no .npz file of images: make or fetch it anew") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2]:
        raise UserError(
            f"{path}: expected square images as uint8 (N, H, H, 3) in `images`, found {images.dtype} {images.shape}"
        )
    if labels and (len(labels) != len(images) or not set(labels) <= set(range(len(classes)))):
        raise UserError(f"{path}: `labels` must hold one number from 0 to {len(classes) - 1} for each image")
    if not labels:
        classes, labels = ("all",), [0] * len(images)
    return images.transpose(0, 3, 1, 2), labels, classes  # (N, H, W, 3) -> (N, 3, H, W)
