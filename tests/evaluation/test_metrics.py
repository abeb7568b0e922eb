"""Distances against closed forms, direct formulas and other implementations."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from cifargan.evaluation.metrics import frechet_distance, inception_score, kernel_distance, mean_and_covariance


def draw(n: int, d: int, *, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated features (n, d) with a spread of scales, as networks have them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) * torch.logspace(0, -2, d)
    return torch.randn(n, d, generator=generator) @ mixing + shift


def frechet(a: Tensor, b: Tensor) -> float:
    return frechet_distance(*mean_and_covariance(a), *mean_and_covariance(b))


def test_mean_and_covariance_are_numpys_in_float64() -> None:
    features = draw(30, 5, seed=0, shift=100.0)
    mean, covariance = mean_and_covariance(features)
    array = features.double().numpy()
    torch.testing.assert_close(mean, torch.from_numpy(array.mean(axis=0)), rtol=1e-13, atol=0)
    torch.testing.assert_close(covariance, torch.from_numpy(np.cov(array, rowvar=False)), rtol=1e-11, atol=1e-13)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        mean_and_covariance(torch.zeros(1, 4))


@pytest.mark.parametrize(("n", "m"), [(400, 300), (30, 300), (300, 30), (30, 20)])  # d = 64: below it, singular
def test_frechet_distance_agrees_with_other_implementations(n: int, m: int) -> None:
    a, b = mean_and_covariance(draw(n, 64, seed=1)), mean_and_covariance(draw(m, 64, seed=2, shift=0.3))
    (mean_a, covariance_a), (mean_b, covariance_b) = (tuple(part.numpy() for part in side) for side in (a, b))
    theirs = fid_statistics_to_metric(
        {"mu": mean_a, "sigma": covariance_a}, {"mu": mean_b, "sigma": covariance_b}, False
    )["frechet_inception_distance"]
    root = sqrtm(covariance_a @ covariance_b)
    by_root = np.square(mean_a - mean_b).sum() + np.trace(covariance_a + covariance_b - 2 * root).real

    assert theirs > 1
    assert frechet_distance(*a, *b) == pytest.approx(theirs, rel=1e-6)
    assert frechet_distance(*a, *b) == pytest.approx(by_root, rel=1e-6)
    assert frechet_distance(*b, *a) == pytest.approx(frechet_distance(*a, *b), rel=1e-6)


def test_frechet_distance_of_few_images_is_that_of_their_gram_matrix() -> None:
    """With N < d the last trace is the nuclear norm of Xa Xb^T, which no root of a rounded zero disturbs."""
    a, b = draw(20, 64, seed=3).double(), draw(25, 64, seed=4).double()
    xa, xb = ((x - x.mean(dim=0)) / math.sqrt(len(x) - 1) for x in (a, b))
    overlap = torch.linalg.svdvals(xa @ xb.T).sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    expected = means + xa.square().sum() + xb.square().sum() - 2 * overlap
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_distance_of_diagonal_gaussians() -> None:
    mean_a, mean_b = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.5]], dtype=torch.float64)
    deviation_a, deviation_b = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.5, 4.0]], dtype=torch.float64)
    expected = (mean_a - mean_b).square().sum() + (deviation_a - deviation_b).square().sum()
    distance = frechet_distance(mean_a, deviation_a.square().diag(), mean_b, deviation_b.square().diag())
    assert distance == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("n", [200, 20])
def test_equal_sets_are_at_distance_zero(n: int) -> None:
    features = draw(n, 64, seed=5)
    spread = float(mean_and_covariance(features)[1].trace())
    assert 0 <= frechet(features, features) <= 1e-6 * spread
    assert frechet(features, features.flip(0)) == pytest.approx(0, abs=1e-6 * spread)


def test_features_without_any_spread() -> None:
    """A generator that draws one image only has a covariance of zero."""
    constant, real = torch.full((10, 8), 2.0), draw(50, 8, seed=6)
    mean, covariance = mean_and_covariance(real)
    expected = (mean - 2).square().sum() + covariance.trace()
    assert frechet(real, constant) == pytest.approx(float(expected), rel=1e-9)
    assert frechet(constant, constant) == 0


def test_kernel_distance_is_the_unbiased_formula() -> None:
    real, fake = draw(7, 4, seed=7).double(), draw(7, 4, seed=8, shift=0.5).double()

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 4 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(kernel(x[i], x[j]) for x in (real, fake) for i, j in pairs if i != j) / (7 * 6)
    across = sum(kernel(real[i], fake[j]) for i, j in pairs) / (7 * 7)

    mean, deviation = kernel_distance(real, fake, subsets=3)
    assert mean == pytest.approx(within - 2 * across, rel=1e-5)
    assert deviation == pytest.approx(0, abs=1e-5 * mean)  # each subset is the whole set


def test_kernel_distance_over_subsets_is_torch_fidelitys() -> None:
    real, fake = draw(60, 8, seed=9), draw(50, 8, seed=10, shift=0.1)
    theirs = kid_features_to_metric(
        real.double(), fake.double(), kid_subsets=100, kid_subset_size=20, rng_seed=2020, verbose=False
    )
    mean, deviation = kernel_distance(real, fake, subset_size=20)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)
    assert deviation > 0


def test_kernel_distance_takes_no_more_than_there_is() -> None:
    real, fake = draw(12, 4, seed=11), draw(9, 4, seed=12)
    assert kernel_distance(real, fake) == kernel_distance(real, fake, subset_size=9)
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_distance(real, fake[:1])


def test_inception_score_of_a_network_that_sees_nothing_is_one() -> None:
    assert inception_score(torch.full((40, 6), 3.0)) == pytest.approx((1, 0), rel=1e-12, abs=1e-12)


def test_inception_score_of_sure_and_even_predictions_is_the_number_of_classes() -> None:
    logits = 100 * torch.eye(6).repeat(5, 1)
    assert inception_score(logits, splits=1) == pytest.approx((6, 0), rel=1e-12, abs=1e-12)


def test_inception_score_splits() -> None:
    """Of sure predictions, a split scores exp of the entropy of its classes."""
    labels = torch.arange(43) % 5
    dealt = labels[np.random.RandomState(2020).permutation(43)]  # the score's own shuffle
    scores = []
    for i in range(4):
        split = dealt[i * 43 // 4 : (i + 1) * 43 // 4]
        share = torch.bincount(split, minlength=5).double() / len(split)
        scores.append(float(torch.special.entr(share).sum().exp()))

    mean, deviation = inception_score(100 * torch.eye(5)[labels], splits=4)
    assert mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert deviation == pytest.approx(np.std(scores), rel=1e-9)
    assert deviation > 0


def test_inception_score_refuses_more_splits_than_images() -> None:
    with pytest.raises(ValueError, match="10 splits"):
        inception_score(torch.zeros(9, 3))


def test_no_metric_draws_from_a_global_generator(global_rng: Callable[[], bytes]) -> None:
    real, fake = draw(30, 4, seed=13), draw(30, 4, seed=14)
    before = global_rng()
    frechet(real, fake)
    kernel_distance(real, fake, subset_size=10)
    inception_score(real)
    assert global_rng() == before
