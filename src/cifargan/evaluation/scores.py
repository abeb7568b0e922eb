"""From two sets of features to records: every score that generated and real images allow."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.feature_stats import Measured
from cifargan.evaluation.metrics import IS_SPLITS, frechet_distance, gaussian, kernel_distance
from cifargan.evaluation.precision_recall import manifold_scores, nearest
from cifargan.evaluation.records import Protocol, Record
from cifargan.evaluation.reference import Reference

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, as in the reference implementations
NEIGHBOURS = 5  # k of precision, recall, density and coverage, as in Naeem et al. 2020
MANIFOLD_SAMPLES = 10_000  # images a side that manifold metrics look at: their time grows with its square


def own_scores(fake: Measured, extractor: FeatureExtractor, protocol: Protocol) -> list[Record]:
    """Scores that need no real images: the Inception Score, where the extractor's logits allow one."""
    if fake.inception_score is None:
        return []
    value, spread = fake.inception_score
    over = f"{IS_SPLITS} splits"
    return [
        Record(
            metric=f"is{extractor.suffix}", value=value, spread=spread, spread_over=over, n=len(fake), protocol=protocol
        )
    ]


def distances(
    fake: Measured, reference: Reference, extractor: FeatureExtractor, protocol: Protocol, *, device: torch.device
) -> list[Record]:
    """Fréchet distance, and the kernel distance where the real features are known.

    Raises:
        UserError: the real images are of another size.
    """
    _check_size(fake, reference)
    record = partial(Record, n=len(fake), protocol=protocol, reference=reference.card)
    records = [record(metric=extractor.distance_name, value=frechet_distance(fake.gaussian, reference.gaussian))]
    if reference.has_features:
        size = min(SUBSET_SIZE, len(fake), len(reference.features))
        value, spread = kernel_distance(
            reference.features, fake.features, subsets=SUBSETS, subset_size=size, device=device
        )
        over = f"{SUBSETS} subsets of {size}"
        records.append(record(metric=extractor.kernel_name, value=value, spread=spread, spread_over=over))
    return records


def details(
    fake: Measured,
    reference: Reference,
    extractor: FeatureExtractor,
    protocol: Protocol,
    *,
    device: torch.device,
    labelled: bool,
) -> list[Record]:
    """What a single distance hides: precision, recall, density, coverage, and each class on its own.

    Args:
        fake: the generated images.
        reference: the real ones; where only their statistics are known, there is nothing to tell.
        extractor: what the features are of.
        protocol: goes into the records.
        device: where blocks of distances are computed.
        labelled: whether the labels of `fake` count the reference's classes, as those of a conditional generator do.
    """
    if not reference.has_features:
        return []
    picked = spread_evenly(reference.labels, MANIFOLD_SAMPLES)
    some_fake, some_real = fake.features[:MANIFOLD_SAMPLES], reference.features[picked]
    if min(len(some_fake), len(some_real)) <= NEIGHBOURS:
        raise UserError(
            f"precision and recall need more than {NEIGHBOURS} images a side, not {len(some_fake)} generated and "
            f"{len(some_real)} real ones: raise the number of samples"
        )
    scores = manifold_scores(some_real, some_fake, k=NEIGHBOURS, device=device)
    records = [
        Record(
            metric=f"{name}{extractor.suffix}",
            value=value,
            n=len(some_fake),
            protocol=protocol,
            reference=reference.card,
        )
        for name, value in scores._asdict().items()
    ]
    return [*records, *(_per_class(fake, reference, extractor, protocol, device) if labelled else [])]


def _per_class(
    fake: Measured, reference: Reference, extractor: FeatureExtractor, protocol: Protocol, device: torch.device
) -> Iterator[Record]:
    """For each class its Fréchet distance, and how many of its images lie next to real ones of that class."""
    looked_at = slice(0, MANIFOLD_SAMPLES)
    picked = spread_evenly(reference.labels, MANIFOLD_SAMPLES)
    neighbours = nearest(fake.features[looked_at], reference.features[picked], k=1, device=device).indices[:, 0]
    hit = reference.labels[picked][neighbours] == fake.labels[looked_at]
    for label, name in enumerate(reference.classes):
        own, real = fake.labels == label, reference.labels == label
        record = partial(Record, class_name=name, protocol=protocol, reference=reference.card)
        if min(int(own.sum()), int(real.sum())) >= 2:
            value = frechet_distance(gaussian(fake.features[own]), gaussian(reference.features[real]))
            yield record(metric=extractor.distance_name, value=value, n=int(own.sum()))
        among = own[looked_at]
        if among.any():
            share = float(hit[among].double().mean())
            yield record(metric=f"class_hit_rate{extractor.suffix}", value=share, n=int(among.sum()))


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


def caveats(n: int, extractor: FeatureExtractor) -> list[str]:
    """What must be known of scores from as few as n images."""
    lines = []
    if n <= extractor.dim:
        lines.append(f"{n} images for {extractor.dim} features: the covariance is singular, a distance far too large")
    if n < SUBSET_SIZE:
        lines.append(f"{n} images: the kernel distance is over subsets of {n} instead of {SUBSET_SIZE}")
    return lines


def _check_size(fake: Measured, reference: Reference) -> None:
    if reference.images is None or not len(fake.images):
        return
    made, real = fake.images.shape[-1], reference.images.shape[-1]
    if made != real:
        raise UserError(
            f"the images are {made}x{made} and those of {reference.card.name} {real}x{real}, and a distance would "
            "measure that: give a reference of the same size"
        )
