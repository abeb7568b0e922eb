"""Where images come from: what every source gives, and what is done to all of them alike."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cifargan.data.contrast import is_low_contrast
from cifargan.errors import UserError, did_you_mean
from cifargan.untrusted import readable, require_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images in memory, and what they are.

    Attributes:
        images: (N, 3, H, W) uint8 on the CPU, H = W.
        labels: (N,) int64 in [0, K).
        classes: The K class names, in the order of the labels.
        name: What the set is called in reports.
        splits: The splits that were joined, in order.
        flip: Whether a mirrored image is as good as the original.
        fingerprint: SHA-256 in hex over shape, classes, labels and images; worked out when it is not given.
        skipped: How many broken files were left out.
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
            # The one way to set a field of a frozen dataclass from within.
            object.__setattr__(self, "fingerprint", _fingerprint(self.images, self.labels, self.classes))

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


def _fingerprint(images: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([list(images.shape), list(classes)]).encode())
    for part in (labels, images):
        digest.update(part.contiguous().view(-1).numpy().data)
    return digest.hexdigest()


class ImageSource(ABC):
    """A place that images come from.

    Args:
        splits: Which splits to join, in this order.
        classes: Which classes to keep, by name, numbered in this order; empty keeps all.
        image_size: H = W, at least 1.
        flip: Whether a mirrored image is as good as the original.
        drop_low_contrast: `fraction_threshold` below which scikit-image calls an image low in contrast, in [0, 1); such
            images are left out. 0 keeps all. See `contrast.contrast` for its scale.

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
            UserError: They cannot be had, or the settings leave none.
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
        """Join the splits and keep what the user asked for.

        Args:
            parts: For each split, (N, 3, H, W) uint8 images and (N,) int64 labels into `classes`.
            name: What the set is called.
            splits: What the parts are called.
            classes: All class names that there are.
            skipped: How many broken files were left out.

        Returns:
            The images with labels into the kept classes.
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
            low = is_low_contrast(images, self.drop_low_contrast)
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
    """Check names that the user gave.

    Args:
        wanted: The user's names.
        available: All names that there are.
        setting: The setting they were given in.
        kind: What they name, in one word.

    Returns:
        The user's names.

    Raises:
        UserError: A name is unknown or given twice.
    """
    for i, name in enumerate(wanted):
        if name not in available:
            known = ", ".join(readable(one) for one in available[:20]) + (", ..." if len(available) > 20 else "")
            hint = did_you_mean(name, available) or f"; choose from {known or 'none'}"
            raise UserError(f"{setting}: there is no {kind} {name!r}{hint}")
        if name in wanted[:i]:
            raise UserError(f"{setting}: {kind} {name!r} is named twice")
    return list(wanted)


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize square images, antialiased bicubic as in PIL; images that have the size already are returned as they are.

    Args:
        images: (N, 3, h, h) uint8.
        image_size: H.

    Returns:
        (N, 3, H, H) uint8.
    """
    if images.shape[-1] == image_size:
        return images
    return F.interpolate(images, size=(image_size, image_size), mode="bicubic", antialias=True)  # h -> H
