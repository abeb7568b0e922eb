"""DiffAugment: exact transformations for given draws, and draws with the published distributions."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.objectives.augment import (
    DEFAULT_POLICY,
    DiffAugment,
    adjust_color,
    cut_out,
    random_color,
    random_cutout,
    random_translation,
    translate,
)


def images(n: int, side: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def shift_by_hand(image: Tensor, down: int, right: int) -> Tensor:
    """Pad by more than any shift, then look through a window that moves the other way."""
    side, pad = image.shape[-1], 8
    padded = F.pad(image, (pad, pad, pad, pad))
    return padded[:, pad - down : pad - down + side, pad - right : pad - right + side]


def test_color_equals_a_numpy_loop() -> None:
    x = images(5)
    generator = torch.Generator().manual_seed(1)
    brightness, saturation, contrast = (2.0 * torch.rand(3, 5, 1, 1, 1, generator=generator)).unbind()
    result = adjust_color(x, brightness, saturation, contrast)
    for i in range(5):
        image = x[i].numpy().astype(np.float64) + brightness[i].item()
        grey = image.mean(axis=0)
        image = np.stack([grey + saturation[i].item() * (channel - grey) for channel in image])
        image = image.mean() + contrast[i].item() * (image - image.mean())
        np.testing.assert_allclose(result[i].numpy(), image, rtol=1e-5, atol=1e-5)


def test_color_draws_have_the_published_ranges() -> None:
    """Every factor can be read back from images of three pixels that are not zero."""
    torch.manual_seed(0)
    n = 4000
    x = torch.zeros(n, 3, 4, 4)
    x[:, 0, 0, 0], x[:, 1, 0, 0] = 0.5, -0.5  # a colour without grey: saturation moves it and no mean
    x[:, :, 1, 1], x[:, :, 2, 2] = 0.5, -0.5  # greys without a mean: contrast moves them, saturation does not
    result = random_color(x)
    brightness = result.mean(dim=(1, 2, 3))
    contrast = result[:, 0, 1, 1] - result[:, 0, 2, 2]
    saturation = (result[:, 0, 0, 0] - result[:, 1, 0, 0]) / contrast
    for factor, low, high in ((brightness, -0.5, 0.5), (saturation, 0.0, 2.0), (contrast, 0.5, 1.5)):
        assert low - 1e-4 < factor.min().item() < low + 0.02
        assert high - 0.02 < factor.max().item() < high + 1e-4
        # Five standard errors of a uniform's mean and of its variance, 1/12 of the squared width.
        width = high - low
        assert factor.mean().item() == pytest.approx((low + high) / 2, abs=5 * width / (12 * n) ** 0.5)
        assert factor.var().item() == pytest.approx(width**2 / 12, rel=5 * (0.8 / n) ** 0.5)
    factors = torch.stack([brightness, saturation, contrast])
    torch.testing.assert_close(torch.corrcoef(factors), torch.eye(3), atol=5 / n**0.5, rtol=0.0)


def test_translate_equals_a_window_for_every_shift() -> None:
    image = images(1)[0]
    shifts = list(product(range(-3, 4), repeat=2))
    down, right = torch.tensor(shifts).unbind(dim=1)
    moved = translate(image.expand(len(shifts), -1, -1, -1), down, right)
    for result, (rows, columns) in zip(moved, shifts, strict=True):
        assert torch.equal(result, shift_by_hand(image, rows, columns)), (rows, columns)


def test_translation_draws_every_shift_equally_often() -> None:
    torch.manual_seed(0)
    n, side = 9000, 10  # an eighth of 10, rounded, is 1: nine shifts
    image = images(1, side)[0]
    moved = random_translation(image.expand(n, -1, -1, -1))
    counts = [
        (moved == shift_by_hand(image, rows, columns)).flatten(1).all(dim=1).sum().item()
        for rows, columns in product((-1, 0, 1), repeat=2)
    ]
    assert sum(counts) == n
    assert counts == pytest.approx([n / 9] * 9, abs=5 * (n * 8 / 81) ** 0.5)


@pytest.mark.parametrize(("side", "reach"), [(4, 1), (11, 1), (12, 2), (32, 4)])
def test_translation_reaches_an_eighth_rounded(side: int, reach: int) -> None:
    torch.manual_seed(0)
    moved = random_translation(torch.ones(400, 3, side, side))
    kept = {int(rows) for rows in moved[:, 0].amax(dim=2).sum(dim=1)}
    assert kept == set(range(side - reach, side + 1))


def test_cut_out_equals_slicing() -> None:
    x = images(4)
    corners = [(0, 0), (-2, 3), (5, -1), (7, 6)]
    top, left = torch.tensor(corners).unbind(dim=1)
    result = cut_out(x, top, left, height=3, width=4)
    for i, (row, column) in enumerate(corners):
        expected = x[i].clone()
        expected[:, max(row, 0) : row + 3, max(column, 0) : column + 4] = 0.0
        assert torch.equal(result[i], expected), (row, column)


@pytest.mark.parametrize("side", [8, 6])
def test_cutout_areas_are_those_of_a_uniform_centre(side: int) -> None:
    """The hole's half-side is even or odd; its first row runs from -half // 2 so that the centre covers the image."""
    torch.manual_seed(0)
    n, half = 20000, side // 2
    holes = random_cutout(torch.ones(n, 3, side, side)) == 0.0
    assert torch.equal(holes[:, 0], holes[:, 1])
    rows = holes[:, 0].any(dim=2).sum(dim=1)
    columns = holes[:, 0].any(dim=1).sum(dim=1)
    assert torch.equal(holes[:, 0].sum(dim=(1, 2)), rows * columns)  # nothing but a rectangle

    places = side + 1 if half % 2 == 0 else side
    starts = [centre - half // 2 for centre in range(places)]
    visible = [len(range(max(start, 0), min(start + half, side))) for start in starts]
    for area in range(half**2 + 1):
        p = sum(a * b == area for a, b in product(visible, repeat=2)) / places**2
        seen = (rows * columns == area).sum().item()
        assert seen == pytest.approx(n * p, abs=5 * (n * p * (1 - p)) ** 0.5), area


@pytest.mark.parametrize("name", DEFAULT_POLICY)
def test_each_image_gets_its_own_draw(name: str) -> None:
    torch.manual_seed(0)
    result = DiffAugment(policy=[name])(images(1, side=32).expand(16, -1, -1, -1))
    assert len({tuple(image.flatten().tolist()) for image in result}) >= 12


def test_same_seed_gives_real_and_fake_the_same_transformation() -> None:
    augment = DiffAugment()
    results = []
    real, fake = images(6, seed=1), images(6, seed=2)
    for x in (real, fake, real + fake, torch.zeros_like(real)):
        torch.manual_seed(3)
        results.append(augment(x))
    # A given draw is affine in the image, so a + b and a, b differ by what it makes of zero.
    torch.testing.assert_close(results[0] + results[1], results[2] + results[3])


def test_policy_is_applied_in_the_order_given() -> None:
    x = images(16)
    orders = [["color", "cutout"], ["cutout", "color"]]
    zeros = []
    for order in orders:
        torch.manual_seed(4)
        zeros.append((DiffAugment(policy=order)(x) == 0.0).flatten(1).sum(dim=1))
    assert (zeros[0] >= 3 * 4).all()  # cut last, the hole is exactly zero
    assert (zeros[1] == 0).all()  # cut first, brightness fills it


def test_a_policy_may_be_a_subset_of_known_names() -> None:
    x = images(8)
    assert DiffAugment(policy=[])(x) is x
    torch.manual_seed(5)
    cut = DiffAugment(policy=["cutout"])(x)
    assert torch.equal(cut[cut != 0.0], x[cut != 0.0])
    with pytest.raises(UserError, match="'colour': choose from color, translation, cutout"):
        DiffAugment(policy=["translation", "colour"])


def test_gradient_is_that_of_the_transformation() -> None:
    augment = DiffAugment()
    x = images(2, side=4).double().requires_grad_()

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(6)
        result: Tensor = augment(x)
        return result

    assert torch.autograd.gradcheck(seeded, (x,))
    (gradient,) = torch.autograd.grad(seeded(x).sum(), x)
    assert (gradient.flatten(1) != 0.0).any(dim=1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_shape_and_pixels_are_kept_even_under_autocast(dtype: torch.dtype) -> None:
    x = images(64).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert DiffAugment()(x).dtype == dtype
        moved = DiffAugment(policy=["translation", "cutout"])(x)
    assert moved.shape == x.shape
    for image, original in zip(moved, x, strict=True):
        assert set(image.flatten().tolist()) <= {0.0, *original.flatten().tolist()}
