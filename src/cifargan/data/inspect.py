"""Inspect the splits of a data set: counts, mean images, colours, contrast, duplicates."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cifargan.data.sources import ImageSet, contrast
from cifargan.errors import UserError
from cifargan.progress import Progress

logger = logging.getLogger(__name__)

REDUCED = 8  # height and width at which all pairs are compared
CANDIDATE = 0.95  # cosine of reduced images above which a pair is compared at full size
NEAR = 0.22  # largest mean absolute difference of near-duplicates, in standard deviations
FLAT = 4.0  # grey levels of standard deviation below which an image shows nothing
BLOCK = 4096  # images compared with as many others at a time: 64 MB of cosines
CONFIRM = 2048  # pairs compared at full size at a time
MAX_PAIRS = 100_000  # near-duplicates to keep; a set of variations of one image has billions


class NearPair(NamedTuple):
    """Two images that differ little."""

    first: int
    second: int  # larger than `first`
    difference: float  # mean absolute, in standard deviations
    mirrored: bool  # whether the first is near the mirror image of the second


class Duplicates(NamedTuple):
    """Duplicates over all splits, whose images are numbered consecutively from 0."""

    equal: list[list[int]]  # groups of at least two with equal bytes, each ascending, ordered by their first image
    near: list[NearPair]  # by ascending difference; of equal images only the first is compared
    complete: bool  # whether all near pairs are listed


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """The result of `inspect`.

    Attributes:
        splits: split -> its images, in the order in which images are numbered over all splits.
        counts: split -> (K,) int64, images per class.
        means: split -> (K, 3, H, W) uint8, the mean image of each class.
        histograms: (K, 3, 256) int64, pixels per class, channel and level, all splits together.
        contrast: split -> (N,) float64, see `sources.contrast`.
        threshold: Images with a contrast below count as low in contrast.
        duplicates: Equal and nearly equal images over all splits.
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
        """The split of the image with this number over all splits, and its index there."""
        for split, images in self.splits.items():
            if index < len(images):
                return split, index
            index -= len(images)
        raise IndexError("there are not as many images")

    def image(self, index: int) -> Tensor:
        """(3, H, W) uint8 of the image with this number over all splits."""
        split, own = self.place(index)
        return self.splits[split].images[own]

    def label(self, index: int) -> str:
        """The class of the image with this number over all splits."""
        split, own = self.place(index)
        return self.classes[int(self.splits[split].labels[own])]


def inspect(splits: Sequence[ImageSet], *, threshold: float) -> Inspection:
    """Inspect the splits of a data set.

    Args:
        splits: At least one, all of one image size.
        threshold: Contrast below which an image counts as low in contrast.

    Raises:
        UserError: The splits differ in their classes.
    """
    first = splits[0]
    for other in splits:
        if other.classes != first.classes:
            raise UserError(f"data.splits: {first.splits[0]} and {other.splits[0]} differ in their classes")
    named = {"+".join(one.splits): one for one in splits}
    images = torch.cat([one.images for one in splits])
    labels = torch.cat([one.labels for one in splits])
    logger.info("%s: inspecting %d images", first.name, len(images))
    return Inspection(
        splits=named,
        counts={name: torch.bincount(one.labels, minlength=one.num_classes) for name, one in named.items()},
        means={name: class_means(one.images, one.labels, one.num_classes) for name, one in named.items()},
        histograms=histograms(images, labels, first.num_classes),
        contrast={name: contrast(one.images) for name, one in named.items()},
        threshold=threshold,
        duplicates=find_duplicates(images),
    )


def class_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The rounded mean image of each class, (N, 3, H, W) uint8 -> (K, 3, H, W) uint8; white for a class without images."""
    means = torch.full((classes, *images.shape[1:]), 255, dtype=torch.uint8)
    for label in range(classes):
        if len(own := images[labels == label]):
            # An integer sum of bytes is exact for any number of images.
            means[label] = (own.sum(dim=0, dtype=torch.int64).double() / len(own)).round().to(torch.uint8)
    return means


def histograms(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count the pixels of each class, channel and level, (N, 3, H, W) uint8 -> (K, 3, 256) int64."""
    counted = torch.zeros(classes, 3, 256, dtype=torch.int64)
    for label in range(classes):
        own = images[labels == label]
        for channel in range(3):
            counted[label, channel] = torch.bincount(own[:, channel].flatten(), minlength=256)
    return counted


def find_duplicates(images: Tensor) -> Duplicates:
    """Find equal and nearly equal images.

    Equal images have equal bytes. For near-duplicates all pairs, as they are and mirrored, are compared by the cosine of
    images reduced to 8x8 without their mean colour, so that brightness, tint and contrast do not matter; pairs above
    `CANDIDATE` are compared by `difference` at full size. Flat images are compared for equality only.

    Args:
        images: (N, 3, H, W) uint8.
    """
    owners: dict[bytes, list[int]] = {}
    for index, image in enumerate(images.flatten(1).numpy()):
        owners.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), []).append(index)
    equal = [group for group in owners.values() if len(group) > 1]
    distinct = torch.tensor([group[0] for group in owners.values()], dtype=torch.int64)
    spread = [_centred(images[part]).square().mean(dim=1).sqrt() for part in torch.split(distinct, BLOCK)]
    distinct = distinct[torch.cat(spread) >= FLAT]
    near, complete = _near(images, distinct)
    return Duplicates(equal, sorted(near, key=lambda pair: (pair.difference, pair.first, pair.second)), complete)


def _near(images: Tensor, distinct: Tensor) -> tuple[list[NearPair], bool]:
    """The near pairs among distinct images (M,), and whether these are all."""
    edge = min(REDUCED, images.shape[-1])
    parts = [F.adaptive_avg_pool2d(images[part].float(), edge) for part in torch.split(distinct, BLOCK)]
    upright = torch.cat(parts)  # (M, 3, E, E)
    vectors = [(flip, F.normalize(_centred(small))) for flip, small in ((False, upright), (True, upright.flip(-1)))]
    best: dict[tuple[int, int], NearPair] = {}
    corners = [(i, j) for i in range(0, len(distinct), BLOCK) for j in range(i, len(distinct), BLOCK)]
    with Progress(len(corners), label="near-duplicates", unit="block") as progress:
        for i, j in corners:
            for mirrored, columns in vectors:
                cosine = vectors[0][1][i : i + BLOCK] @ columns[j : j + BLOCK].T  # (B, B')
                pairs = (cosine >= CANDIDATE).nonzero() + torch.tensor([i, j])  # (P, 2)
                for part in torch.split(distinct[pairs[pairs[:, 0] < pairs[:, 1]]], CONFIRM):
                    second = images[part[:, 1]].flip(-1) if mirrored else images[part[:, 1]]
                    differences = difference(images[part[:, 0]], second)
                    for (a, b), value in zip(part.tolist(), differences.tolist(), strict=True):
                        # A symmetric image is near both as it is and mirrored.
                        if value <= NEAR and ((a, b) not in best or value < best[a, b].difference):
                            best[a, b] = NearPair(a, b, value, mirrored)
                    if len(best) >= MAX_PAIRS:
                        return [*best.values()], False
            progress.update(1)
    return [*best.values()], True


def _centred(images: Tensor) -> Tensor:
    """Images without their mean colour, (M, 3, H, W) -> (M, 3HW) float32."""
    levels = images.float()
    return (levels - levels.mean(dim=(2, 3), keepdim=True)).flatten(1)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Compare images with mean colour and contrast made equal: 0 for equal images, 1.13 for unrelated noise.

    Args:
        a: (M, 3, H, W) uint8.
        b: The same.

    Returns:
        (M,) float32: the mean absolute difference in standard deviations.
    """
    flat = [_centred(images) for images in (a, b)]
    x, y = (one / one.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6) for one in flat)
    return (x - y).abs().mean(dim=1)


def count_rows(found: Inspection) -> list[list[str]]:
    """A table of the images per class and split, with a last row of sums."""
    rows = [["class", *found.splits]]
    for label, name in enumerate(found.classes):
        rows.append([name, *(f"{int(counts[label]):,}" for counts in found.counts.values())])
    return [*rows, ["all", *(f"{len(images):,}" for images in found.splits.values())]]


def colour_rows(found: Inspection) -> list[list[str]]:
    """A table of the mean level of each colour per class, all splits together."""
    rows = [["class", "red", "green", "blue"]]
    for name, counts in zip(found.classes, found.histograms.double(), strict=True):
        levels = counts @ torch.arange(256.0, dtype=torch.float64) / counts.sum(dim=1).clamp(min=1)
        rows.append([name, *(f"{level:.1f}" for level in levels.tolist())])
    return rows


def contrast_rows(found: Inspection) -> list[list[str]]:
    """A table of the number of images below usual thresholds of contrast, and below the chosen one."""
    thresholds = sorted({0.05, 0.1, 0.15, found.threshold})
    low = [[f"{int((values < one).sum()):,}" for values in found.contrast.values()] for one in thresholds]
    return [["contrast below", *found.splits], *([f"{one:g}", *row] for one, row in zip(thresholds, low, strict=True))]


def duplicate_rows(found: Inspection) -> list[list[str]]:
    """A table of equal and nearly equal images, by their splits and whether their labels differ."""
    names = list(found.splits)
    places = [f"within {name}" for name in names]
    places += [f"{a} and {b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    pairs = [("equal", group[0], second) for group in found.duplicates.equal for second in group[1:]]
    pairs += [("near", pair.first, pair.second) for pair in found.duplicates.near]
    counted: Counter[tuple[str, str]] = Counter()
    for kind, first, second in pairs:
        a, b = found.place(first)[0], found.place(second)[0]
        place = f"within {a}" if a == b else f"{a} and {b}"
        counted[kind, place] += 1
        counted["odd", place] += found.label(first) != found.label(second)
    more = "" if found.duplicates.complete else " or more"
    rows = [["duplicates", "equal", "nearly equal", "of them with two labels"]]
    for place in places:
        equal, near, odd = (f"{counted[kind, place]:,}" for kind in ("equal", "near", "odd"))
        rows.append([place, equal, f"{near}{more}", odd])
    return rows
