"""Counts, means and histograms against numbers worked out by hand and by NumPy."""

import numpy as np
import torch

from cifargan.data.inspect import class_means, histograms

LABELS = torch.tensor([0, 2, 0])


def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_means_are_rounded_and_white_where_there_is_nothing() -> None:
    means = class_means(images(), LABELS, 3)
    expected = np.rint(images()[[0, 2]].numpy().astype(np.float64).mean(axis=0))
    np.testing.assert_array_equal(means[0].numpy(), expected)
    assert torch.equal(means[2], images()[1])
    assert (means[1] == 255).all()


def test_histograms_count_every_pixel_by_channel() -> None:
    counted = histograms(images(), LABELS, 3)
    assert counted.shape == (3, 3, 256)
    expected = np.histogram(images()[[0, 2], 1].numpy(), bins=256, range=(0, 256))[0]
    np.testing.assert_array_equal(counted[0, 1].numpy(), expected)
    assert counted.sum(dim=2).tolist() == [[32] * 3, [0] * 3, [16] * 3]
