"""Scores as functions of what they need: features, labels or images of the real and the fake side."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import full_precision
from cifargan.evaluation.feature_stats import in_batches
from cifargan.evaluation.metrics import IS_SPLITS, Gaussian, frechet_distance, gaussian, kernel_distance
from cifargan.evaluation.precision_recall import Authenticity, ManifoldScores, authenticity, manifold_scores, nearest
from cifargan.images import to_float
from cifargan.models.interface import Discriminator

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, as in the reference implementations
NEIGHBOURS = 5  # k of precision, recall, density and coverage, as in Naeem et al. 2020
MANIFOLD_SAMPLES = 10_000  # images a side that metrics of nearest neighbours look at: time grows with the square

SUSPECTS = 16  # samples to be looked at as possible copies
CLASSIFIED_TOGETHER = 100  # images


class Value(NamedTuple):
    """What a metric gives where it has more to say than one number over all images."""

    value: float
    spread: float | None = None  # given after the plus-minus sign
    spread_over: str | None = None  # what the spread is the population deviation over
    n: int | None = None  # generated images that it is of; None: all that the metric looks at
    class_name: str | None = None  # None: all classes


def inception_score(inception_score: tuple[float, float]) -> Value:
    """The Inception Score (Salimans et al. 2016), which was summed up batch by batch."""
    value, spread = inception_score
    return Value(value, spread, f"{IS_SPLITS} splits")


def fid(real_gaussian: Gaussian, fake_gaussian: Gaussian) -> float:
    """The Fréchet distance (Heusel et al. 2017) in the extractor's feature space."""
    return frechet_distance(fake_gaussian, real_gaussian)


def kid(real_features: Tensor, fake_features: Tensor, device: torch.device) -> Value:
    """The kernel distance (Bińkowski et al. 2018)."""
    size = min(SUBSET_SIZE, len(fake_features), len(real_features))
    value, spread = kernel_distance(real_features, fake_features, subsets=SUBSETS, subset_size=size, device=device)
    return Value(value, spread, f"{SUBSETS} subsets of {size}")


def manifold(real_features: Tensor, real_labels: Tensor, fake_features: Tensor, device: torch.device) -> ManifoldScores:
    """Precision, recall, density and coverage of the first samples and of real images of all classes."""
    fake, real = fake_features[:MANIFOLD_SAMPLES], real_features[spread_evenly(real_labels, MANIFOLD_SAMPLES)]
    if min(len(fake), len(real)) <= NEIGHBOURS:
        raise UserError(
            f"precision and recall need more than {NEIGHBOURS} images a side, not {len(fake)} generated and "
            f"{len(real)} real ones: raise the number of samples"
        )
    return manifold_scores(real, fake, k=NEIGHBOURS, device=device)


def copies(real_features: Tensor, fake_features: Tensor, device: torch.device) -> Authenticity:
    """Which of the first samples are nearer to a real image than that one is to any other (Alaa et al. 2022)."""
    return authenticity(real_features, fake_features[:MANIFOLD_SAMPLES], device=device)


# What several metrics share.
SHARED: dict[str, Callable[..., Any]] = {"manifold": manifold, "copies": copies}


def precision(manifold: ManifoldScores) -> float:
    """The share of samples among the real images (Kynkäänniemi et al. 2019)."""
    return manifold.precision


def recall(manifold: ManifoldScores) -> float:
    """The share of real images among the samples (same)."""
    return manifold.recall


def density(manifold: ManifoldScores) -> float:
    """How many real neighbourhoods a sample lies in, over k (Naeem et al. 2020)."""
    return manifold.density


def coverage(manifold: ManifoldScores) -> float:
    """The share of real neighbourhoods with a sample in it (same)."""
    return manifold.coverage


def authentic(copies: Authenticity) -> float:
    """The share of samples that are no copies (Alaa et al. 2022)."""
    return copies.share


def class_fid(
    real_features: Tensor, real_labels: Tensor, fake_features: Tensor, fake_labels: Tensor, classes: tuple[str, ...]
) -> Iterator[Value]:
    """The Fréchet distance of each class that has two images on either side."""
    for label, name in enumerate(classes):
        fake, real = fake_features[fake_labels == label], real_features[real_labels == label]
        if min(len(fake), len(real)) >= 2:
            yield Value(frechet_distance(gaussian(fake), gaussian(real)), n=len(fake), class_name=name)


def class_hit_rate(
    real_features: Tensor,
    real_labels: Tensor,
    fake_features: Tensor,
    fake_labels: Tensor,
    classes: tuple[str, ...],
    device: torch.device,
) -> Iterator[Value]:
    """For each class the share of its samples whose nearest real image is of that class."""
    picked = spread_evenly(real_labels, MANIFOLD_SAMPLES)
    fake, labels = fake_features[:MANIFOLD_SAMPLES], fake_labels[:MANIFOLD_SAMPLES]
    neighbours = nearest(fake, real_features[picked], k=1, device=device).indices[:, 0]
    hit = (real_labels[picked][neighbours] == labels).double()
    for label, name in enumerate(classes):
        own = labels == label
        if own.any():
            yield Value(float(hit[own].mean()), n=int(own.sum()), class_name=name)


def head_hit_rate(
    classifier: Discriminator, fake_images: Tensor, fake_labels: Tensor, classes: tuple[str, ...], device: torch.device
) -> Iterator[Value]:
    """The share of images that an auxiliary head puts into their own class, for all and for each class.

    The head was trained on images of this generator, so a high rate says that both agree, and not that they are right.

    Args:
        classifier: in eval mode, with class logits in its output.
        fake_images: (M, 3, H, W) uint8 on the CPU.
        fake_labels: (N,) int64; the first M are of these images.
        classes: class names in the order of the labels.
        device: where the discriminator is.

    Raises:
        ValueError: the discriminator has no class head.
    """
    labels = fake_labels[: len(fake_images)]
    hits = []
    with full_precision(device):
        for x, y in in_batches(fake_images, labels, CLASSIFIED_TOGETHER):
            logits = classifier(to_float(x).to(device), y.to(device)).class_logits
            if logits is None:
                raise ValueError("this discriminator has no class head")
            hits.append((logits.argmax(dim=1).cpu() == y).double())
    hit = torch.cat(hits)
    of: dict[str | None, Tensor] = {None: torch.ones_like(hit, dtype=torch.bool)}
    of |= {name: labels == i for i, name in enumerate(classes)}
    for name, own in of.items():
        if own.any():
            yield Value(float(hit[own].mean()), n=int(own.sum()), class_name=name)


def suspects(copies: Authenticity, fake_images: Tensor, real_images: Tensor, device: torch.device) -> dict[str, Tensor]:
    """The most suspicious samples first: they, their nearest training images by features, and those by pixels.

    Args:
        copies: of the samples whose images are known.
        fake_images: (M, 3, H, W) uint8 on the CPU.
        real_images: (N, 3, H, W) uint8.
        device: where blocks of distances are computed.

    Returns:
        Three rows of at most 16 images, (S, 3, H, W) uint8.
    """
    first = copies.ratios.argsort(stable=True)[:SUSPECTS]
    pixels = nearest(fake_images[first].flatten(1), real_images.flatten(1), k=1, device=device)
    return {
        "samples": fake_images[first],
        "nearest by features": real_images[copies.indices[first]],
        "nearest by pixels": real_images[pixels.indices[:, 0]],
    }


def spread_evenly(labels: Tensor, n: int) -> Tensor:
    """At most n positions, spread evenly over each class in turn.

    Args:
        labels: (N,) int64.
        n: how many.

    Returns:
        (min(n, N),) int64 positions in `labels`.
    """
    n = min(n, len(labels))
    # By class first: a step through images that lie class after class in turn could skip classes.
    return labels.argsort(stable=True)[torch.arange(n) * len(labels) // max(n, 1)]
