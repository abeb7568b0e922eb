"""Scores against closed forms, direct formulas and other implementations."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from cifargan.evaluation import metrics
from cifargan.evaluation.metrics import (
    IS_SPLITS,
    Gaussian,
    GaussianSums,
    InceptionScoreSums,
    frechet_distance,
    gaussian,
    kernel_distance,
)

CPU = torch.device("cpu")


def draw(n: int, d: int, *, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated features (n, d) with a spread of scales, as networks have them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) * torch.logspace(0, -2, d)
    return torch.randn(n, d, generator=generator) @ mixing + shift


def inception_score(logits: Tensor, *, splits: int = IS_SPLITS) -> tuple[float, float]:
    sums = InceptionScoreSums(len(logits), splits=splits, device=logits.device)
    sums.update(logits)
    return sums.result()


def rotation(d: int, *, seed: int) -> Tensor:
    matrix = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rotated: Tensor = torch.linalg.qr(matrix)[0]
    return rotated


def relative_to(*sides: Gaussian) -> float:
    """The sum of the traces, which rounding is relative to."""
    return sum(float(side.covariance.trace()) for side in sides)


class TestGaussian:
    @pytest.mark.parametrize("shift", [0.0, 100.0])
    def test_equals_numpy_in_float64(self, shift: float) -> None:
        features = draw(30, 5, seed=0, shift=shift)
        mean, covariance, n = gaussian(features)
        array = features.double().numpy()
        assert n == 30
        assert (mean.dtype, covariance.dtype) == (torch.float64, torch.float64)
        torch.testing.assert_close(mean, torch.from_numpy(array.mean(axis=0)), rtol=1e-14, atol=1e-16)
        torch.testing.assert_close(covariance, torch.from_numpy(np.cov(array, rowvar=False)), rtol=1e-11, atol=1e-15)

    @pytest.mark.parametrize("rows", [7, 2**16])  # long batches are split
    @pytest.mark.parametrize("sizes", [(1, 1, 28), (30,), (0, 7, 0, 23), (29, 1)])
    def test_is_the_same_for_any_batches(
        self, sizes: tuple[int, ...], rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features = draw(30, 5, seed=1, shift=3.0)
        expected = gaussian(features)
        monkeypatch.setattr(metrics, "_ROWS", rows)
        sums = GaussianSums(5, device=CPU)
        seen = 0
        for batch in torch.split(features, list(sizes)):
            sums.update(batch)
            seen += len(batch)
            if seen > 1:
                torch.testing.assert_close(
                    sums.result().mean, features[:seen].double().mean(dim=0), rtol=1e-13, atol=1e-15
                )
        mean, covariance, n = sums.result()
        assert n == 30
        torch.testing.assert_close(mean, expected.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(covariance, expected.covariance, rtol=1e-12, atol=1e-14)

    def test_digits_survive_a_mean_far_above_the_spread(self) -> None:
        """Sums about zero would have 1e16 * eps = 2 of error, where the variance is 1."""
        features = draw(500, 3, seed=3).double()
        far = gaussian(features + 1e8)
        torch.testing.assert_close(far.covariance, gaussian(features).covariance, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(
        ("features", "message"),
        [
            (torch.zeros(1, 4), "at least 2 rows of features, got 1"),
            (torch.zeros(0, 4), "at least 2 rows of features, got 0"),
            (torch.tensor([[1.0, 2.0], [3.0, math.nan], [4.0, 5.0]]), "the 3 rows of features are not finite"),
            (torch.tensor([[1.0, 2.0], [3.0, math.inf]]), "not finite"),
            (torch.zeros(4), r"must be \(N, d\), not \(4,\)"),
        ],
    )
    def test_refuses(self, features: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            gaussian(features)
        with pytest.raises(ValueError, match=r"must be \(B, 4\), not \(3, 5\)"):
            GaussianSums(4, device=CPU).update(torch.zeros(3, 5))


class TestFrechetDistance:
    def test_of_equal_distributions_is_zero(self) -> None:
        for n in (200, 20):  # d = 64: full rank and not
            features = draw(n, 64, seed=5)
            a, b = gaussian(features), gaussian(features.flip(0))
            assert 0 <= frechet_distance(a, a) <= 1e-12 * relative_to(a, a)
            # A covariance computed in another order has another rounding: its root shows where its rank is not full.
            assert 0 <= frechet_distance(a, b) <= 1e-8 * relative_to(a, b)

    def test_of_shifted_distributions_is_the_shift(self) -> None:
        a = gaussian(draw(200, 64, seed=6))
        assert frechet_distance(a, a._replace(mean=a.mean + 0.25)) == pytest.approx(64 / 16, rel=1e-12)

    @pytest.mark.parametrize("n", [200, 20])
    def test_of_scaled_distributions(self, n: int) -> None:
        """(s C^(1/2))^2: the distance is (1 - s)^2 tr C."""
        a = gaussian(draw(n, 64, seed=7))
        b = a._replace(covariance=9 * a.covariance)
        assert frechet_distance(a, b) == pytest.approx(4 * float(a.covariance.trace()), rel=1e-8)
        assert frechet_distance(b, a) == pytest.approx(4 * float(a.covariance.trace()), rel=1e-8)

    @pytest.mark.parametrize("full", [True, False])
    def test_of_distributions_with_the_same_axes(self, full: bool) -> None:
        """|ma - mb|^2 + |da - db|^2 for deviations d along the axes, wherever these point."""
        axes = rotation(64, seed=8)
        da, db = torch.logspace(1, -3, 64, dtype=torch.float64), torch.logspace(-3, 0, 64, dtype=torch.float64)
        if not full:
            da[40:] = db[:10] = 0
        mean = torch.linspace(-1, 1, 64, dtype=torch.float64)
        a = Gaussian(mean, axes * da.square() @ axes.T, 100)
        b = Gaussian(2 * mean, axes * db.square() @ axes.T, 100)
        expected = float(mean.square().sum() + (da - db).square().sum())
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)

    def test_ignores_the_rounding_of_a_variance_of_zero(self) -> None:
        """A variance of 1e-15, of a largest 1, is the rounding of 0; its root would add up to 5e-6 here."""
        deviation = torch.cat([torch.ones(10), torch.zeros(54)]).double()
        a = Gaussian(torch.zeros(64).double(), (deviation + 1e-15).diag(), 11)
        b = Gaussian(a.mean, 4 * torch.eye(64, dtype=torch.float64), 100)
        assert frechet_distance(a, b) == pytest.approx(10 + 54 * 4, rel=1e-10)

    @pytest.mark.parametrize(("n", "m"), [(400, 300), (30, 300), (30, 20)])
    def test_agrees_with_other_implementations(self, n: int, m: int) -> None:
        a, b = gaussian(draw(n, 64, seed=13)), gaussian(draw(m, 64, seed=14, shift=0.3))
        theirs = fid_statistics_to_metric(
            *({"mu": g.mean.numpy(), "sigma": g.covariance.numpy()} for g in (a, b)), False
        )
        distance = frechet_distance(a, b)
        rel = 1e-10 if min(n, m) > 64 else 1e-6  # the others take the roots of rounded zeros
        assert distance > 1
        assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=rel)
        assert distance == pytest.approx(float(_compute_fid(a.mean, a.covariance, b.mean, b.covariance)), rel=rel)

    @pytest.mark.parametrize(("n", "m"), [(400, 300), (30, 300), (300, 30)])
    def test_is_the_same_by_either_way_to_singular_values(
        self, n: int, m: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = gaussian(draw(n, 64, seed=15)), gaussian(draw(m, 64, seed=16))
        expected = frechet_distance(a, b)
        monkeypatch.setattr(metrics, "_SVD_LIMIT", 0)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
        assert frechet_distance(a._replace(n=0), b) == pytest.approx(expected, rel=1e-8)  # their number is not known
        assert frechet_distance(a, a) <= 1e-8 * relative_to(a, a)

    def test_without_variance(self) -> None:
        """A generator of a single image has a covariance of zero."""
        constant, real = gaussian(torch.full((10, 8), 2.0)), gaussian(draw(50, 8, seed=17))
        expected = (real.mean - 2).square().sum() + real.covariance.trace()
        assert frechet_distance(real, constant) == pytest.approx(float(expected), rel=1e-12)
        assert frechet_distance(constant, constant) == 0

    def test_refuses_what_cannot_be_compared(self) -> None:
        a = gaussian(draw(20, 4, seed=18))
        with pytest.raises(ValueError, match="of 4 and of 5 dimensions"):
            frechet_distance(a, gaussian(draw(20, 5, seed=18)))
        with pytest.raises(ValueError, match="not finite"):
            frechet_distance(a, a._replace(mean=a.mean * math.nan))
        with pytest.raises(ValueError, match="not finite"):
            frechet_distance(a._replace(covariance=a.covariance / 0), a)


class TestKernelDistance:
    def test_of_whole_sets_is_that_of_torchmetrics(self) -> None:
        real, fake = draw(7, 4, seed=20).double(), draw(7, 4, seed=21, shift=0.5).double()
        mean, deviation = kernel_distance(real, fake, subsets=3, subset_size=7)
        assert mean == pytest.approx(float(poly_mmd(real, fake)), rel=1e-12)
        assert deviation == pytest.approx(0, abs=1e-12 * mean)  # each subset is the whole set

    def test_over_subsets_is_that_of_torch_fidelity_with_the_real_images_first(self) -> None:
        real, fake = draw(60, 8, seed=22), draw(50, 8, seed=23, shift=0.1)
        theirs = kid_features_to_metric(real.double(), fake.double(), kid_subset_size=20, verbose=False)
        mean, deviation = kernel_distance(real.double(), fake.double(), subset_size=20)
        assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
        assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-10)
        assert deviation > 0
        swapped = kid_features_to_metric(fake.double(), real.double(), kid_subset_size=20, verbose=False)
        assert mean != pytest.approx(swapped["kernel_inception_distance_mean"], rel=1e-4)

    @pytest.mark.parametrize("shift", [0.0, 0.3])
    def test_is_that_of_torch_fidelity_in_float32(self, shift: float) -> None:
        real, fake = draw(300, 128, seed=24).relu(), draw(250, 128, seed=25, shift=shift).relu()
        theirs = kid_features_to_metric(real, fake, kid_subset_size=200, kid_subsets=10, verbose=False)
        mean, deviation = kernel_distance(real, fake, subset_size=200, subsets=10)
        assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5, abs=1e-6)
        assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-5, abs=1e-6)

    def test_of_one_distribution_is_about_zero(self) -> None:
        """It is unbiased, so zero is within a deviation of the mean over the subsets."""
        mean, deviation = kernel_distance(draw(500, 8, seed=26), draw(500, 8, seed=26).flip(0), subset_size=50)
        assert abs(mean) < deviation

    @pytest.mark.parametrize(
        ("n", "m", "subsets", "size", "message"),
        [
            (12, 9, 3, 10, "subsets of 10 need as many images, got 12 real and 9 fake"),
            (9, 12, 3, 10, "got 9 real and 12 fake"),
            (9, 9, 3, 1, "subset_size=1 at least 2"),
            (9, 9, 0, 5, "subsets=0 must be at least 1"),
        ],
    )
    def test_refuses(self, n: int, m: int, subsets: int, size: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            kernel_distance(torch.zeros(n, 4), torch.zeros(m, 4), subsets=subsets, subset_size=size)
        with pytest.raises(ValueError, match="not finite"):
            kernel_distance(torch.zeros(9, 4), torch.full((9, 4), math.nan), subset_size=5)
        with pytest.raises(ValueError, match=r"not \(9, 4\) and \(9, 5\)"):
            kernel_distance(torch.zeros(9, 4), torch.zeros(9, 5), subset_size=5)


class TestInceptionScore:
    def test_of_known_predictions(self) -> None:
        """Even ones; certain ones of six classes; and exp(-1000), which is 0 in float64, where 0 log 0 counts as 0."""
        vanishing = torch.tensor([[0.0, 0.0, -1000.0], [0.0, -1000.0, -1000.0]])
        expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - math.log(2) / 2)
        assert inception_score(torch.full((40, 6), 3.0)) == pytest.approx((1, 0), rel=1e-12, abs=1e-12)
        certain = 100 * torch.eye(6).repeat(5, 1)
        assert inception_score(certain, splits=1) == pytest.approx((6, 0), rel=1e-12, abs=1e-12)
        assert inception_score(vanishing, splits=1) == pytest.approx((expected, 0), rel=1e-12)

    @pytest.mark.parametrize(("n", "splits"), [(100, 10), (43, 4), (10, 10), (7, 1)])
    def test_equals_that_of_torch_fidelity(self, n: int, splits: int) -> None:
        logits = 4 * draw(n, 12, seed=30)
        theirs = isc_features_to_metric(logits, splits=splits)
        score, deviation = inception_score(logits, splits=splits)
        assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
        assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-10, abs=1e-14)

    @pytest.mark.parametrize("sizes", [(1, 1, 41), (0, 40, 3), (20, 23)])
    def test_is_the_same_for_any_batches(self, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        logits = draw(43, 12, seed=31)
        expected = inception_score(logits, splits=4)
        monkeypatch.setattr(metrics, "_ROWS", 16)
        sums = InceptionScoreSums(43, splits=4, device=CPU)
        for batch in torch.split(logits, list(sizes)):
            sums.update(batch)
        assert sums.result() == pytest.approx(expected, rel=1e-13)

    def test_refuses_other_numbers_and_shapes(self) -> None:
        sums = InceptionScoreSums(20, device=CPU)
        sums.update(torch.zeros(15, 3))
        with pytest.raises(ValueError, match="of 20 images got the logits of 15"):
            sums.result()
        with pytest.raises(ValueError, match="of 21 images came where 20 were announced"):
            sums.update(torch.zeros(6, 3))
        with pytest.raises(ValueError, match="10 splits needs as many images, got 9"):
            inception_score(torch.zeros(9, 3))
        with pytest.raises(ValueError, match="0 splits"):
            inception_score(torch.zeros(9, 3), splits=0)
        with pytest.raises(ValueError, match="not finite"):
            inception_score(torch.full((20, 3), math.nan))
        with pytest.raises(ValueError, match=r"must be \(B, K\), not \(20,\)"):
            inception_score(torch.zeros(20))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_are_the_same_on_a_gpu() -> None:
    real, fake = draw(3000, 64, seed=42), draw(2500, 64, seed=43, shift=0.1)
    device = torch.device("cuda")
    expected = frechet_distance(gaussian(real), gaussian(fake))
    assert frechet_distance(gaussian(real.to(device)), gaussian(fake.to(device))) == pytest.approx(expected, rel=1e-9)
    expected_pair = kernel_distance(real, fake, subsets=10)
    assert kernel_distance(real, fake, subsets=10, device=device) == pytest.approx(expected_pair, rel=1e-9)
    assert inception_score(fake.to(device)) == pytest.approx(inception_score(fake), rel=1e-12)
