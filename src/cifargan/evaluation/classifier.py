"""Whether samples are of the class that was asked for, by the judgement of a discriminator with a class head."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cifargan.evaluation.extractors.interface import full_precision
from cifargan.evaluation.feature_stats import in_batches
from cifargan.evaluation.scores import Value
from cifargan.images import to_float
from cifargan.models.interface import Discriminator

BATCH = 100


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
        for x, y in in_batches(fake_images, labels, BATCH):
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
