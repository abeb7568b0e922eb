"""The samples that are most like copies of training images, to be looked at."""

import torch
from torch import Tensor

from cifargan.evaluation.precision_recall import Authenticity, nearest

SUSPECTS = 16


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
