"""One pass over images: everything that any score needs of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.evaluation.features import FeatureExtractor
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
    """

    features: Tensor
    labels: Tensor
    gaussian: Gaussian
    inception_score: tuple[float, float] | None
    images: Tensor

    def __len__(self) -> int:
        return len(self.features)


def measure(
    batches: Batches,
    total: int,
    extractor: FeatureExtractor,
    *,
    device: torch.device,
    label: str,
    keep_images: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Measured:
    """Look at images once.

    Moments are summed on the device in float64 as features come; the features themselves, which kernel and manifold
    metrics need, gather on the CPU (50,000 of Inception's take 0.4 GB).

    Args:
        batches: images and labels, `total` in all.
        total: N, at least 2.
        extractor: images to features.
        device: where it runs.
        label: what is being done, for the progress bar.
        keep_images: how many of the first images to keep.
        stop: asked after each batch; True ends the pass.

    Raises:
        UserError: the features are not finite, or there are fewer than two images.
        StoppedError: `stop` said so.
    """
    # Copied into without waiting: the device goes on with the next batch.
    pinned = device.type == "cuda"
    features = torch.empty(total, extractor.dim, pin_memory=pinned)
    labels = torch.empty(total, dtype=torch.int64, pin_memory=pinned)
    sums = GaussianSums(extractor.dim, device=device)
    classes = InceptionScoreSums(total, device=device) if extractor.has_logits and total >= IS_SPLITS else None
    kept: list[Tensor] = []
    done = 0
    with Progress(total, label=label, unit="image") as progress:
        for images, y in batches:
            seen = extractor.extract(images.to(device))
            part = slice(done, done + len(images))
            features[part].copy_(seen.features, non_blocking=True)
            labels[part].copy_(y, non_blocking=True)
            sums.update(seen.features)
            if classes is not None and seen.logits is not None:
                classes.update(seen.logits)
            if done < keep_images:
                kept.append(images[: keep_images - done].cpu())
            done += len(images)
            progress.update(len(images))
            if stop():
                raise StoppedError(f"{label}: stopped after {done} of {total} images")
    if done != total:
        raise UserError(f"{label}: {done} images came where {total} were expected")
    try:
        gaussian = sums.result()  # which waits for the device, and so for every copy
        score = classes.result() if classes is not None else None
    except ValueError as error:
        raise UserError(f"{label}: {error}") from error
    return Measured(
        features=features,
        labels=labels,
        gaussian=gaussian,
        inception_score=score,
        images=torch.cat(kept) if kept else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
    )


def in_batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in memory, a batch at a time."""
    return zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
