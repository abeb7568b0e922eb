"""Everything that is looked at in the splits of a data set."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cifargan.data.contrast import contrast
from cifargan.data.inspection.duplicates import Duplicates, find_duplicates
from cifargan.data.inspection.statistics import class_counts, class_means, histograms
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """What was seen.

    Attributes:
        splits: split -> its images, in the order in which images are counted through.
        counts: split -> (K,) int64, images a class.
        means: split -> (K, 3, H, W) uint8, the mean image of each class.
        histograms: (K, 3, 256) int64, pixels a class, channel and level, all splits together.
        contrast: split -> (N,) float64, see `contrast.contrast`.
        threshold: images below count as low in contrast.
        duplicates: equal and nearly equal images over all splits.
    """

    splits: dict[str, ImageSet]
    counts: dict[str, Tensor]
    means: dict[str, Tensor]
    histograms: Tensor
    contrast: dict[str, Tensor]
    threshold: float
    duplicates: Duplicates

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names."""
        return next(iter(self.splits.values())).classes

    def low(self, split: str) -> Tensor:
        """The indices of a split's images of low contrast, the lowest first."""
        order = self.contrast[split].argsort(stable=True)
        return order[self.contrast[split][order] < self.threshold]

    def place(self, index: int) -> tuple[str, int]:
        """The split of an image that is counted through all splits, and its index there."""
        for split, images in self.splits.items():
            if index < len(images):
                return split, index
            index -= len(images)
        raise IndexError("there are not as many images")

    def image(self, index: int) -> Tensor:
        """(3, H, W) uint8 of an image that is counted through all splits."""
        split, own = self.place(index)
        return self.splits[split].images[own]

    def label(self, index: int) -> str:
        """The class of an image that is counted through all splits."""
        split, own = self.place(index)
        return self.classes[int(self.splits[split].labels[own])]


def inspect(splits: Sequence[ImageSet], *, threshold: float) -> Inspection:
    """Look at the splits of a data set.

    Args:
        splits: at least one, all with the same classes and of one image size.
        threshold: `fraction_threshold` below which an image counts as low in contrast.

    Raises:
        UserError: the splits differ in their classes, or there is no image.
    """
    first = splits[0]
    classes = first.num_classes
    for other in splits:
        if other.classes != first.classes:
            raise UserError(f"data.splits: {first.splits[0]} and {other.splits[0]} differ in their classes")
    named = {"+".join(one.splits): one for one in splits}
    images = torch.cat([one.images for one in splits])
    labels = torch.cat([one.labels for one in splits])
    logger.info("%s: looking at %d images", first.name, len(images))
    return Inspection(
        splits=named,
        counts={name: class_counts(one.labels, classes) for name, one in named.items()},
        means={name: class_means(one.images, one.labels, classes) for name, one in named.items()},
        histograms=histograms(images, labels, classes),
        contrast={name: contrast(one.images) for name, one in named.items()},
        threshold=threshold,
        duplicates=find_duplicates(images),
    )
