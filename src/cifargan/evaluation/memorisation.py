"""Whether a generator repeats the images that it was trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.feature_stats import Measured
from cifargan.evaluation.precision_recall import authenticity, nearest
from cifargan.evaluation.records import Protocol, Record
from cifargan.evaluation.reference import Reference

SUSPECTS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Memorisation:
    """How near samples come to training images.

    Attributes:
        record: the share of authentic samples, those that are no nearer to their nearest training image than that
            image's own nearest neighbour is (Alaa et al. 2022).
        rows: the most suspicious samples first in each row: the samples, their nearest training images by features,
            and by pixels; each (S, 3, H, W) uint8.
    """

    record: Record
    rows: dict[str, Tensor]


def memorisation(
    fake: Measured, reference: Reference, extractor: FeatureExtractor, protocol: Protocol, *, device: torch.device
) -> Memorisation:
    """Look for copies among the samples whose images were kept.

    Args:
        fake: samples, with images.
        reference: the training images.
        extractor: what the features are of.
        protocol: goes into the record.
        device: where blocks of distances are computed.

    Raises:
        UserError: only the statistics of the reference are known.
    """
    if reference.images is None or not reference.has_features:
        raise UserError("copies can only be looked for among training images, of which statistics are not enough")
    known = len(fake.images)
    found = authenticity(reference.features, fake.features[:known], device=device)
    suspects = found.ratios.argsort(stable=True)[:SUSPECTS]
    pixels = nearest(fake.images[suspects].flatten(1), reference.images.flatten(1), k=1, device=device)
    return Memorisation(
        record=Record(
            metric=f"authentic{extractor.suffix}",
            value=found.share,
            n=known,
            protocol=protocol,
            reference=reference.card,
        ),
        rows={
            "samples": fake.images[suspects],
            "nearest by features": reference.images[found.indices[suspects]],
            "nearest by pixels": reference.images[pixels.indices[:, 0]],
        },
    )
