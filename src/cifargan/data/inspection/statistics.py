"""What each class looks like on average: its mean image and how often each level of a colour occurs."""

import torch
from torch import Tensor

LEVELS = 256


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """How many images each class has.

    Args:
        labels: (N,) int64 in [0, K).
        classes: K.

    Returns:
        (K,) int64.
    """
    return torch.bincount(labels, minlength=classes)


def class_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean image of each class, rounded; white where a class has no image.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64 in [0, K).
        classes: K.

    Returns:
        (K, 3, H, W) uint8.
    """
    means = torch.full((classes, *images.shape[1:]), 255, dtype=torch.uint8)
    for label in range(classes):
        own = images[labels == label]
        if len(own):
            # The sum of bytes as integers is exact, however many there are.
            means[label] = (own.sum(dim=0, dtype=torch.int64).double() / len(own)).round().to(torch.uint8)
    return means


def histograms(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many pixels of each class have each level of red, green and blue.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64 in [0, K).
        classes: K.

    Returns:
        (K, 3, 256) int64.
    """
    counted = torch.zeros(classes, 3, LEVELS, dtype=torch.int64)
    for label in range(classes):
        own = images[labels == label]
        for channel in range(3):
            counted[label, channel] = torch.bincount(own[:, channel].flatten(), minlength=LEVELS)
    return counted
