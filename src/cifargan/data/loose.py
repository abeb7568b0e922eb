"""Anyone's images, as they are: a folder, a zip or an array, with classes or without, never resized."""

import io
import warnings
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cifargan.data.decode import FORMATS, decode_files
from cifargan.data.sources import ImageSet
from cifargan.data.storage import BrokenFileError, Storage, is_image, open_storage
from cifargan.errors import UserError
from cifargan.untrusted import ArrayFile, readable, refusing, require_names

MAX_EDGE = 4096  # pixels; all images have the width of the first


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
            try:
                images, labels, classes = _from_files(storage)
            except OSError as error:
                place = readable(str(error.filename or path))
                raise UserError(f"images: cannot read {place}: {error.strerror or error}") from error
    require_names(classes, readable(str(path)))
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
    shown = readable(str(where))
    names = [entry.name for entry in storage.files("") if is_image(entry.name)]
    if not names:
        raise UserError(f"{shown}: no PNG, JPEG or WebP file in it")

    def refuse(file: str, reason: str) -> NoReturn:
        raise UserError(f"{readable(str(where / file))} is broken ({readable(reason)}): mend or remove it")

    try:
        data = storage.read(names[0])
    except BrokenFileError as error:
        refuse(names[0], str(error))
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as first:
            size = first.width
    except Exception:  # a damaged file makes PIL raise almost anything
        refuse(names[0], "not a PNG, JPEG or WebP image")
    if size > MAX_EDGE:
        refuse(names[0], f"it is wider than {MAX_EDGE} pixels")
    images, _ = decode_files(storage, names, image_size=size, label=where.name, on_broken=refuse, resample=False)
    if not all("/" in name for name in names):
        return images, [0] * len(names), ("all",)
    owners = [name.split("/")[0] for name in names]
    classes = tuple(sorted(set(owners)))
    number = {name: label for label, name in enumerate(classes)}
    return images, [number[owner] for owner in owners], classes


def _from_arrays(path: Path) -> tuple[NDArray[np.uint8], list[int], tuple[str, ...]]:
    shown = readable(str(path))
    with refusing(f"{shown} is damaged or no .npz file of images: make or fetch it anew"), ArrayFile(path) as file:
        name = "images" if "images" in file else file.names[0]
        # Before it is read, so that nothing else is read at all.
        shape, dtype = file.kind(name)
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or shape[1] != shape[2] or 0 in shape:
            raise UserError(
                f"{shown}: expected square images as uint8 (N, H, H, 3) in `images`, found {readable(str(dtype))} {shape}"
            )
        images = file.read(name)
        classes = tuple(str(one) for one in file.read("classes")) if "classes" in file else ()
        labels = [int(label) for label in file.read("labels")] if classes and "labels" in file else []
    if labels and (len(labels) != len(images) or not set(labels) <= set(range(len(classes)))):
        raise UserError(f"{shown}: `labels` must hold one number from 0 to {len(classes) - 1} for each image")
    if not labels:
        classes, labels = ("all",), [0] * len(images)
    return images.transpose(0, 3, 1, 2), labels, classes  # (N, H, W, 3) -> (N, 3, H, W)
