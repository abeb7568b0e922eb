"""Whether samples are of the class that was asked for, by the judgement of a discriminator with a class head."""

import torch
from torch import Tensor

from cifargan.evaluation.extractors.interface import full_precision
from cifargan.evaluation.feature_stats import in_batches
from cifargan.evaluation.records import Protocol, Record
from cifargan.images import to_float
from cifargan.models.interface import Discriminator

BATCH = 100


def head_hit_rate(
    discriminator: Discriminator,
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    protocol: Protocol,
    *,
    device: torch.device,
) -> list[Record]:
    """The share of images that an auxiliary head puts into their own class, for all and for each class.

    The head learnt on these very images, so a high rate says that generator and head agree, and not that they are right.

    Args:
        discriminator: in eval mode, with class logits in its output.
        images: (N, 3, H, W) uint8 on the CPU.
        labels: (N,) int64.
        classes: class names in the order of the labels.
        protocol: goes into the records.
        device: where the discriminator is.

    Raises:
        ValueError: the discriminator has no class head.
    """
    hits = []
    with full_precision(device):
        for x, y in in_batches(images, labels, BATCH):
            logits = discriminator(to_float(x).to(device), y.to(device)).class_logits
            if logits is None:
                raise ValueError("this discriminator has no class head")
            hits.append((logits.argmax(dim=1).cpu() == y).double())
    hit = torch.cat(hits)
    of: dict[str | None, Tensor] = {None: torch.ones_like(hit, dtype=torch.bool)}
    of |= {name: labels == i for i, name in enumerate(classes)}
    return [
        Record(
            metric="head_hit_rate", value=float(hit[own].mean()), n=int(own.sum()), class_name=name, protocol=protocol
        )
        for name, own in of.items()
        if own.any()
    ]
