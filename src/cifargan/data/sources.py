"""Image sets in memory, and the interface and the filters that all sources share."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifargan.errors import UserError, did_you_mean
from cifargan.untrusted import readable, require_names

logger = logging.getLogger(__name__)

_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])  # of red, green and blue
_CHUNK = 1024  # images converted to float64 at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images in memory with their labels.

    Attributes:
        images: (N, 3, H, W) uint8 on the CPU, H = W.
        labels: (N,) int64 in [0, K).
        classes: The K class names, in the order of the labels.
        name: The name in reports.
        splits: The splits that were joined, in order.
        flip: Whether training may mirror the images.
        fingerprint: SHA-256 in hex over shape, classes, labels and images; computed when it is not given.
        skipped: Number of broken files that were left out.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    splits: tuple[str, ...]
    flip: bool
    fingerprint: str = ""
    skipped: int = 0

    def __post_init__(self) -> None:
        n, channels, height, width = self.images.shape
        if self.images.dtype != torch.uint8 or channels != 3 or height != width:
            raise ValueError(f"images must be square uint8 (N, 3, H, W), not {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != torch.int64 or self.labels.shape != (n,):
            raise ValueError(f"labels must be int64 ({n},), not {self.labels.dtype} {self.labels.shape}")
        if not self.fingerprint:
            digest = hashlib.sha256(json.dumps([list(self.images.shape), list(self.classes)]).encode())
            for part in (self.labels, self.images):
                digest.update(part.contiguous().view(-1).numpy().data)
            # A frozen dataclass allows no plain assignment.
            object.__setattr__(self, "fingerprint", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """H = W."""
        return self.images.shape[-1]


class ImageSource(ABC):
    """A place that images come from. Each source takes at least these settings.

    Args:
        splits: The splits to join, in this order.
        classes: The classes to keep, by name; labels follow this order. Empty keeps all.
        image_size: H = W, at least 1. Images of another size are resized.
        flip: Whether training may mirror the images.
        drop_low_contrast: Leave out images whose `contrast` is below this value, in [0, 1). 0 keeps all.

    Raises:
        UserError: A setting is out of range.
    """

    def __init__(
        self, *, splits: list[str], classes: list[str], image_size: int, flip: bool, drop_low_contrast: float
    ) -> None:
        if image_size < 1:
            raise UserError(f"data.image_size: must be at least 1, not {image_size}")
        if not 0.0 <= drop_low_contrast < 1.0:
            raise UserError(f"data.drop_low_contrast: must be in [0, 1), not {drop_low_contrast}")
        self.splits = list(splits)
        self.classes = list(classes)
        self.image_size = image_size
        self.flip = flip
        self.drop_low_contrast = drop_low_contrast

    @abstractmethod
    def load(self) -> ImageSet:
        """Read all images into memory.

        Raises:
            UserError: The images cannot be read, or the settings leave none.
        """

    def _assemble(
        self,
        parts: Sequence[tuple[Tensor, Tensor]],
        *,
        name: str,
        splits: Sequence[str],
        classes: Sequence[str],
        skipped: int = 0,
    ) -> ImageSet:
        """Join the splits, keep the chosen classes, and leave out images of low contrast.

        Args:
            parts: For each split, (N, 3, H, W) uint8 images and (N,) int64 labels into `classes`.
            name: The name of the set.
            splits: The names of the parts.
            classes: All class names.
            skipped: Number of broken files that were left out.

        Raises:
            UserError: A class is unknown, has a name that cannot stand in a file name, or has no image left.
        """
        kept = choose(self.classes, classes, setting="data.classes", kind="class") or list(classes)
        require_names(kept, f"data.classes of {readable(name)}")
        images = torch.cat([part_images for part_images, _ in parts])
        labels = torch.cat([part_labels for _, part_labels in parts])
        if kept != list(classes):
            new_label = torch.tensor([kept.index(one) if one in kept else -1 for one in classes])
            labels = new_label[labels]
            images, labels = images[labels >= 0], labels[labels >= 0]
        if self.drop_low_contrast > 0.0:
            low = contrast(images) < self.drop_low_contrast
            logger.info("%s: %d of %d images dropped for low contrast", name, int(low.sum()), len(low))
            images, labels = images[~low], labels[~low]
        counts = torch.bincount(labels, minlength=len(kept))
        for one, count in zip(kept, counts.tolist(), strict=True):
            if count == 0:
                why = f" above data.drop_low_contrast={self.drop_low_contrast}" if self.drop_low_contrast else ""
                raise UserError(f"data.classes: class {one!r} of {name} has no image{why}; leave it out")
        return ImageSet(
            images=images,
            labels=labels,
            classes=tuple(kept),
            name=name,
            splits=tuple(splits),
            flip=self.flip,
            skipped=skipped,
        )


def choose(wanted: Sequence[str], available: Sequence[str], *, setting: str, kind: str) -> list[str]:
    """Check names that the user gave in `setting`, and return them.

    Args:
        wanted: The user's names.
        available: All names that exist.
        setting: The setting they were given in.
        kind: What they name, in one word.

    Raises:
        UserError: A name is unknown or given twice.
    """
    for i, name in enumerate(wanted):
        if name not in available:
            known = ", ".join(readable(one) for one in available[:20]) + (", ..." if len(available) > 20 else "")
            hint = did_you_mean(name, available) or f"; choose from {known or 'none'}"
            raise UserError(f"{setting}: there is no {kind} {name!r}{hint}")
        if name in wanted[:i]:
            raise UserError(f"{setting}: {kind} {name!r} is given twice")
    return list(wanted)


def choose_train_or_test(splits: Sequence[str]) -> list[str]:
    """Check `data.splits` of a source with exactly these two splits.

    Raises:
        UserError: It names none of them, another one, or one twice.
    """
    if not splits:
        raise UserError("data.splits: name at least one of train, test")
    return choose(splits, ["train", "test"], setting="data.splits", kind="split")


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize square images with antialiased bicubic interpolation; images of that size are returned unchanged.

    Args:
        images: (N, 3, h, h) uint8.
        image_size: H.

    Returns:
        (N, 3, H, H) uint8.
    """
    if images.shape[-1] == image_size:
        return images
    return F.interpolate(images, size=(image_size, image_size), mode="bicubic", antialias=True)  # h -> H


def contrast(images: Tensor) -> Tensor:
    """Measure the contrast of each image as `skimage.exposure.is_low_contrast` does.

    The luminance 0.2125 R + 0.7154 G + 0.0721 B lies in [0, 1]; the result is half the distance between its 1st and 99th
    percentile. scikit-image halves it because it takes [-1, 1] as the range of floats: black on white gives 0.5.

    Args:
        images: (N, 3, H, W) uint8.

    Returns:
        (N,) float64 in [0, 0.5].
    """
    ratios = [torch.empty(0, dtype=torch.float64)]
    for chunk in torch.split(images, _CHUNK):
        pixels = chunk.permute(0, 2, 3, 1).contiguous().numpy()  # (M, 3, H, W) -> (M, H, W, 3)
        # Multiplied by 1/255, not divided by 255: the last bit decides for an image exactly at the threshold.
        luminance = (pixels * (1.0 / 255.0)) @ _LUMINANCE  # (M, H, W, 3) -> (M, H, W)
        low, high = np.percentile(luminance.reshape(len(chunk), -1), [1, 99], axis=1)
        ratios.append(torch.from_numpy((high - low) / 2.0))
    return torch.cat(ratios)
