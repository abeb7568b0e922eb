"""Low contrast, against scikit-image."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage import exposure
from torch import Tensor

from cifargan.data.sources import contrast

reference: Callable[..., bool] = exposure.is_low_contrast
THRESHOLD = 0.15


def near_the_threshold(count: int) -> Tensor:
    """Noise whose contrast falls on both sides of the threshold."""
    rng = np.random.default_rng(0)
    span = rng.uniform(0.9, 1.2, (count, 1, 1, 1)) * 2 * THRESHOLD * 255
    base = rng.uniform(0, 150, (count, 3, 1, 1))
    # The same noise in the three channels, or its luminance would average out.
    noise = rng.uniform(0, 1, (count, 1, 16, 16))
    return torch.from_numpy((base + noise * span).clip(0, 255).astype(np.uint8))


def test_agrees_with_scikit_image_image_by_image() -> None:
    images = near_the_threshold(1200)  # more than one chunk
    expected = [reference(image.permute(1, 2, 0).numpy(), fraction_threshold=THRESHOLD) for image in images]
    assert 300 < sum(expected) < 900
    assert (contrast(images) < THRESHOLD).tolist() == expected


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3])
def test_agrees_on_two_grey_levels_that_meet_the_threshold_exactly(threshold: float) -> None:
    # Black and one grey level: the contrast is level / 510, which is the threshold itself for some of these.
    levels = torch.arange(40, 200, dtype=torch.uint8)
    images = torch.zeros(len(levels), 3, 8, 8, dtype=torch.uint8)
    images[:, :, 4:] = levels[:, None, None, None]
    expected = [reference(image.permute(1, 2, 0).numpy(), fraction_threshold=threshold) for image in images]
    assert 0 < sum(expected) < len(expected)
    assert (contrast(images) < threshold).tolist() == expected


def test_black_on_white_is_half_and_flat_is_none() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0, :, :4] = 255
    torch.testing.assert_close(contrast(images), torch.tensor([0.5, 0.0], dtype=torch.float64))
