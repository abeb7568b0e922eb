"""Means, histograms and duplicates: against NumPy, and with planted copies."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cifargan.data import inspect as module
from cifargan.data.inspect import class_means, difference, find_duplicates, histograms
from cifargan.data.sources import resize

LABELS = torch.tensor([0, 2, 0])
IMAGES = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_means_are_rounded_and_white_for_a_class_without_images() -> None:
    means = class_means(IMAGES, LABELS, 3)
    expected = np.rint(IMAGES[[0, 2]].numpy().astype(np.float64).mean(axis=0))
    np.testing.assert_array_equal(means[0].numpy(), expected)
    assert torch.equal(means[2], IMAGES[1])
    assert (means[1] == 255).all()


def test_histograms_count_every_pixel_by_channel() -> None:
    counted = histograms(IMAGES, LABELS, 3)
    assert counted.shape == (3, 3, 256)
    expected = np.histogram(IMAGES[[0, 2], 1].numpy(), bins=256, range=(0, 256))[0]
    np.testing.assert_array_equal(counted[0, 1].numpy(), expected)
    assert counted.sum(dim=2).tolist() == [[32] * 3, [0] * 3, [16] * 3]


def scenes(n: int) -> Tensor:
    """Different images with structure at several scales."""
    random = torch.Generator().manual_seed(0)
    coarse = resize(torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=random), 32)
    noise = torch.randint(-20, 21, coarse.shape, generator=random)
    return (coarse.short() + noise).clamp(30, 200).to(torch.uint8)


def test_equal_and_near_and_mirrored_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)  # so that pairs lie within blocks and between them
    images = scenes(9)
    images[8] = images[1]
    images[5] = (images[0].float() * 0.8 + torch.tensor([40.0, 5.0, 20.0])[:, None, None]).round().to(torch.uint8)
    images[7] = images[6].flip(-1)
    found = find_duplicates(images)
    assert found.equal == [[1, 8]]
    assert [(pair.first, pair.second, pair.mirrored) for pair in found.near] == [(6, 7, True), (0, 5, False)]
    assert found.near[0].difference == 0.0
    assert 0.0 < found.near[1].difference < 0.05
    assert found.complete


def test_images_that_are_not_near_copies() -> None:
    images = scenes(2)
    images[1] = images[0]
    images[1, :, 8:24, 8:24] = 255 - images[1, :, 8:24, 8:24]
    assert find_duplicates(images).near == find_duplicates(images[:1]).near == []
    assert find_duplicates(images[:0]).equal == []
    flat = torch.full((4, 3, 8, 8), 7, dtype=torch.uint8)  # compared for equality alone
    flat[2:] += torch.tensor([1, 2], dtype=torch.uint8)[:, None, None, None]
    found = find_duplicates(flat)
    assert (found.equal, found.near) == ([[0, 1]], [])


def test_the_number_of_pairs_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 3)
    images = scenes(1).repeat(9, 1, 1, 1)
    images[:, 0, 0, 0] = torch.arange(9, dtype=torch.uint8)
    found = find_duplicates(images)
    assert not found.complete
    assert len(found.near) >= 3


def test_difference_ignores_tint_and_contrast_and_is_known_for_noise() -> None:
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 3, 64, 64, generator=random).mul(25).add(128).clamp(0, 255).to(torch.uint8)
    # E|x - y| of two standard normal numbers is 2 / sqrt(pi).
    assert difference(noise[:1], noise[1:]).item() == pytest.approx(2 / torch.pi**0.5, rel=0.02)
    darker = (noise[:1] // 2) + 10
    assert difference(noise[:1], darker).item() < 0.03
