"""One pass over images: everything that any score needs of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.metrics import IS_SPLITS, Gaussian, GaussianSums, InceptionScoreSums
from cifargan.progress import Progress

Batches = Iterable[tuple[Tensor, Tensor]]  # (B, 3, H, W) uint8 and (B,) int64


class StoppedError(UserError):
    """A measurement was asked to stop."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What is known of a set of images.

    Attributes:
        features: (N, d) float32 on the CPU.
        labels: (N,) int64.
        gaussian: mean and covariance of the features.
        inception_score: mean and deviation over the splits; None from an extractor without fitting logits, or where
            there are fewer images than splits.
        images: the first of the images themselves, (M, 3, H, W) uint8 on the CPU, M at most what was asked for.
        logits: (N, K) float32 on the CPU; None where they were not asked for, or the extractor has none.
    """

    features: Tensor
    labels: Tensor
    gaussian: Gaussian
    inception_score: tuple[float, float] | None
    images: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)


class Seen(NamedTuple):
    """What an extractor saw in a batch."""

    features: Tensor  # (B, d)
    logits: Tensor | None  # (B, K), from an extractor that has fitting ones
    labels: Tensor  # (B,) int64
    images: Tensor  # (B, 3, H, W) uint8

    def cpu(self) -> "Seen":
        """The same in the host's memory, with only the first image."""
        logits = None if self.logits is None else self.logits.cpu()
        return Seen(self.features.cpu(), logits, self.labels.cpu(), self.images[:1].cpu())


class Measurement:
    """Sums up what is seen, batch by batch.

    Moments are summed on the device in float64 as features come; the features themselves, which kernel and manifold
    metrics need, gather on the CPU (50,000 of Inception's take 0.4 GB).

    Args:
        total: N, at least 2.
        extractor: where the features come from.
        device: where it runs.
        keep_images: how many of the first images to keep.
        keep_logits: whether to keep the logits.
    """

    def __init__(
        self,
        total: int,
        extractor: FeatureExtractor,
        *,
        device: torch.device,
        keep_images: int = 0,
        keep_logits: bool = False,
    ) -> None:
        # Pinned memory: the copies do not wait, and the device continues with the next batch.
        pinned = device.type == "cuda"
        self.total = total
        self.keep_images = keep_images
        self.done = 0
        self._features = torch.empty(total, extractor.dim, pin_memory=pinned)
        self._labels = torch.empty(total, dtype=torch.int64, pin_memory=pinned)
        self._sums = GaussianSums(extractor.dim, device=device)
        splits = extractor.has_logits and total >= IS_SPLITS
        self._classes = InceptionScoreSums(total, device=device) if splits else None
        self._kept: list[Tensor] = []
        self.keep_logits = keep_logits
        self._logits: list[Tensor] = []

    def add(self, seen: Seen) -> None:
        """Add the next batch."""
        part = slice(self.done, self.done + len(seen.labels))
        self._features[part].copy_(seen.features, non_blocking=True)
        self._labels[part].copy_(seen.labels, non_blocking=True)
        self._sums.update(seen.features)
        if self._classes is not None and seen.logits is not None:
            self._classes.update(seen.logits)
        if self.keep_logits and seen.logits is not None:
            self._logits.append(seen.logits.cpu())
        if self.done < self.keep_images:
            self._kept.append(seen.images[: self.keep_images - self.done].cpu())
        self.done = part.stop

    def result(self, label: str) -> Measured:
        """What is known after the last batch.

        Args:
            label: what was done, for an error.

        Raises:
            UserError: the features are not finite, or there were fewer than two images, or others than expected.
        """
        if self.done != self.total:
            raise UserError(f"{label}: {self.done} images came where {self.total} were expected")
        try:
            gaussian = self._sums.result()  # which waits for the device, and so for every copy
            score = self._classes.result() if self._classes is not None else None
        except ValueError as error:
            raise UserError(f"{label}: {error}") from error
        return Measured(
            features=self._features,
            labels=self._labels,
            gaussian=gaussian,
            inception_score=score,
            images=torch.cat(self._kept) if self._kept else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
            logits=torch.cat(self._logits) if self._logits else None,
        )


def measure(
    batches: Batches,
    total: int,
    extractor: FeatureExtractor,
    *,
    device: torch.device,
    label: str,
    keep_images: int = 0,
    keep_logits: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Measured:
    """Look at images once.

    Args:
        batches: images and labels, `total` in all.
        total: N, at least 2.
        extractor: images to features.
        device: where it runs.
        label: what is being done, for the progress bar.
        keep_images: how many of the first images to keep.
        keep_logits: whether to keep the logits.
        stop: asked after each batch; True ends the pass.

    Raises:
        UserError: the features are not finite, or there are fewer than two images.
        StoppedError: `stop` said so.
    """
    measurement = Measurement(total, extractor, device=device, keep_images=keep_images, keep_logits=keep_logits)
    for seen in look(batches, total, extractor, device=device, label=label, stop=stop):
        measurement.add(seen)
    return measurement.result(label)


def look(
    batches: Batches,
    total: int,
    extractor: FeatureExtractor,
    *,
    device: torch.device,
    label: str,
    stop: Callable[[], bool],
) -> Iterator[Seen]:
    """Yield what the extractor sees in each batch, on the device; arguments and errors as of `measure`."""
    with Progress(total, label=label, unit="image") as progress:
        for images, y in batches:
            seen = extractor.extract(images.to(device))
            yield Seen(seen.features, seen.logits, y, images)
            progress.update(len(images))
            if stop():
                raise StoppedError(f"{label}: stopped after {progress.done} of {total} images")


def in_batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in memory, a batch at a time."""
    return zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
