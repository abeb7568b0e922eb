"""Scores of sets of features, from sums that grow batch by batch.

Sums are in float64 on the device. None of this draws from a global random generator: what is shuffled is shuffled by
fixed seeds, those of torch-fidelity, so that the figures are its figures.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

IS_SPLITS = 10

_SEED = 2020
_ROWS = 4096  # converted to float64 at once
_SVD_LIMIT = 1024  # columns up to which singular values are found directly
_EPS = torch.finfo(torch.float64).eps
_CPU = torch.device("cpu")


class Gaussian(NamedTuple):
    """A normal distribution, as it is fitted to features."""

    mean: Tensor  # (d,) float64, CPU
    covariance: Tensor  # (d, d) float64, CPU; normalised by N - 1
    n: int  # rows it was fitted to


class GaussianSums:
    """Fits a normal distribution to features that come in batches, in the memory of two (d, d) matrices.

    Args:
        dim: d, the width of the features.
        device: where the sums are kept; one without float64 (mps) leaves them to the CPU.
    """

    def __init__(self, dim: int, *, device: torch.device) -> None:
        self._device = _device_with_float64(device)
        self._n = 0
        self._centre = torch.zeros(dim, dtype=torch.float64, device=self._device)
        self._sum = torch.zeros_like(self._centre)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64, device=self._device)

    def update(self, features: Tensor) -> None:
        """Add features (B, d) of any floating dtype.

        Raises:
            ValueError: they are no (B, d).
        """
        dim = len(self._centre)
        if features.ndim != 2 or features.shape[1] != dim:
            raise ValueError(f"features must be (B, {dim}), not {tuple(features.shape)}")
        for rows in torch.split(features, _ROWS):
            x = rows.to(self._device).double()
            if self._n == 0 and len(x):
                self._centre = x.mean(dim=0)  # sums about zero would cancel where a mean exceeds its spread
            x = x - self._centre
            self._n += len(x)
            self._sum += x.sum(dim=0)
            self._outer.addmm_(x.T, x)

    def result(self) -> Gaussian:
        """The distribution of all rows so far.

        Raises:
            ValueError: fewer than two rows, which have no covariance, or some that are not finite.
        """
        if self._n < 2:
            raise ValueError(f"a covariance needs at least 2 rows of features, got {self._n}")
        offset = self._sum / self._n
        covariance = (self._outer - self._n * offset.outer(offset)) / (self._n - 1)
        if not covariance.isfinite().all():
            raise ValueError(f"some of the {self._n} rows of features are not finite")
        return Gaussian((self._centre + offset).cpu(), covariance.cpu(), self._n)


def gaussian(features: Tensor) -> Gaussian:
    """The normal distribution fitted to features (N, d), on whatever device they are.

    Raises:
        ValueError: they are no (N, d), are fewer than two, or are not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be (N, d), not {tuple(features.shape)}")
    sums = GaussianSums(features.shape[1], device=features.device)
    sums.update(features)
    return sums.result()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance between two normal distributions (Heusel et al. 2017, eq. 6).

    |ma - mb|^2 + tr(Ca + Cb) - 2 tr((Ca Cb)^(1/2)). Singular covariances are fine. Runs on the CPU.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: the distributions are of different dimensions, or not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    if not all(part.isfinite().all() for part in (a.mean, a.covariance, b.mean, b.covariance)):
        raise ValueError("a mean or a covariance is not finite")
    overlap = _overlap(a, b)
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return float(distance.clamp(min=0))  # equal distributions can come out a rounding below it


class InceptionScoreSums:
    """The Inception Score (Salimans et al. 2016) of images whose logits come in batches, in the memory of one batch.

    exp of the mean KL(p(y|x) || p(y)) within each split. Images are dealt into the splits by the permutation that
    torch-fidelity uses, which is known once the number of images is; so the order in which they come matters, and
    how they are batched does not.

    Args:
        total: how many images will come.
        splits: parts that the images are dealt into.
        device: where the sums are kept; one without float64 (mps) leaves them to the CPU.

    Raises:
        ValueError: fewer images than splits, or no split.
    """

    def __init__(self, total: int, *, splits: int = IS_SPLITS, device: torch.device) -> None:
        if not 1 <= splits <= total:
            raise ValueError(f"an Inception Score of {splits} splits needs as many images, got {total}")
        self._device = _device_with_float64(device)
        self._total = total
        self._seen = 0
        bounds = [i * total // splits for i in range(splits + 1)]
        self._sizes = torch.tensor(bounds, device=self._device).diff()  # (S,)
        dealt = np.random.RandomState(_SEED).permutation(total)
        split_of = torch.empty(total, dtype=torch.int64)
        split_of[torch.from_numpy(dealt)] = torch.arange(splits).repeat_interleave(self._sizes.cpu())
        self._split_of = split_of.to(self._device)  # (N,)
        self._splits = torch.arange(splits, device=self._device)
        self._probabilities = torch.zeros(splits, 1, dtype=torch.float64, device=self._device)  # (S, K) once K is known
        self._negentropies = torch.zeros(splits, dtype=torch.float64, device=self._device)

    def update(self, logits: Tensor) -> None:
        """Add logits (B, K) of the next B images.

        Raises:
            ValueError: they are no (B, K), or more have come than were announced.
        """
        if logits.ndim != 2:
            raise ValueError(f"logits must be (B, K), not {tuple(logits.shape)}")
        if self._seen + len(logits) > self._total:
            raise ValueError(f"logits of {self._seen + len(logits)} images came where {self._total} were announced")
        for rows in torch.split(logits, _ROWS):
            log_p = rows.to(self._device).double().log_softmax(dim=1)
            p = log_p.exp()
            split = self._split_of[self._seen : self._seen + len(rows)]
            belongs = (self._splits.unsqueeze(1) == split).double()  # (S, B): its product adds up each split's rows
            self._probabilities = self._probabilities + belongs @ p  # (S, K)
            self._negentropies += belongs @ (p * log_p).sum(dim=1)
            self._seen += len(rows)

    def result(self) -> tuple[float, float]:
        """The mean over the splits and the population deviation.

        Raises:
            ValueError: images are missing, or logits are not finite.
        """
        if self._seen < self._total:
            raise ValueError(f"an Inception Score of {self._total} images got the logits of {self._seen}")
        marginals = self._probabilities / self._sizes.unsqueeze(1)
        scores = (self._negentropies / self._sizes + torch.special.entr(marginals).sum(dim=1)).exp()
        if not scores.isfinite().all():
            raise ValueError(f"some of the logits of {self._total} images are not finite")
        return float(scores.mean()), float(scores.std(correction=0))


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000, device: torch.device = _CPU
) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018): mean and deviation of the unbiased MMD^2 with the kernel (x.y/d + 1)^3.

    The deviation is the population's over the subsets, which is no standard error. Subsets are drawn as torch-fidelity
    draws them when its first input is the real images and its second the fake ones; its figure for the opposite order
    differs as two draws of subsets do.

    Args:
        real: (N, d) features, on any device.
        fake: (M, d) features, on any device.
        subsets: how many random subsets to average over.
        subset_size: images in each, at least 2 and at most N and M.
        device: where to compute: on CUDA in float64, where float32 would depend on whether TF32 is allowed; elsewhere in
            the features' own precision, which halves the time. Sums are in float64 but on mps.

    Raises:
        ValueError: a set is smaller than a subset, a setting is out of range, the sets differ in d, or are not finite.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets={subsets} must be at least 1, and subset_size={subset_size} at least 2")
    if min(len(real), len(fake)) < subset_size:
        raise ValueError(
            f"kernel-distance subsets of {subset_size} need as many images, got {len(real)} real and {len(fake)} fake"
        )
    if real.ndim != 2 or real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"features must be (N, d) and (M, d), not {tuple(real.shape)} and {tuple(fake.shape)}")
    dtype = torch.float64 if device.type == "cuda" else real.dtype
    random = np.random.RandomState(_SEED)
    distances = []
    for _ in range(subsets):
        x, y = (
            side[torch.from_numpy(random.choice(len(side), subset_size, replace=False)).to(side.device)]
            .to(device)
            .to(dtype)
            for side in (real, fake)
        )
        distances.append(_unbiased_mmd2(x, y))
    result = torch.stack(distances).cpu().double()
    if not result.isfinite().all():
        raise ValueError("some of the features are not finite")
    return float(result.mean()), float(result.std(correction=0))


def _unbiased_mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Equation 4 of Bińkowski et al., for x and y (m, d): pairs of an image with itself do not count."""
    m = len(x)
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    real, fake = _cubic_kernel(x, x), _cubic_kernel(y, y)
    itself = real.diagonal().sum(dtype=exact) + fake.diagonal().sum(dtype=exact)
    within: Tensor = real.sum(dtype=exact) + fake.sum(dtype=exact) - itself
    return within / (m * (m - 1)) - 2 * _cubic_kernel(x, y).mean(dtype=exact)


def _cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1).pow(3)


def _device_with_float64(device: torch.device) -> torch.device:
    return _CPU if device.type == "mps" else device


def _overlap(a: Gaussian, b: Gaussian) -> Tensor:
    """tr((Ca Cb)^(1/2)): with Ca = La La^T and Cb = Lb Lb^T, the sum of the singular values of La^T Lb."""
    dim = len(a.mean)
    if min(a.n, b.n) > dim > _SVD_LIMIT and (lower := _cholesky(b.covariance)) is not None:
        # Of many dimensions and of more rows still, as in a reported score. The squares of those singular values are the
        # eigenvalues of Lb^T Ca Lb, which LAPACK forms at a quarter of the cost of two products.
        product, _ = lapack.dsygst(a.covariance.numpy(), lower.numpy(), itype=2, lower=1)
        return _root_sum(torch.linalg.eigvalsh(torch.from_numpy(product), UPLO="L"))
    return _nuclear_norm(_factor(a.covariance).T @ _factor(b.covariance))


def _root_sum(squares: Tensor) -> Tensor:
    """The sum of the roots; what rounding has put below 0 counts as 0."""
    roots: Tensor = squares.clamp(min=0).sqrt()
    return roots.sum()


def _cholesky(covariance: Tensor) -> Tensor | None:
    """L (d, d) with L L^T = C, where C is safely positive definite."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    return lower if failed == 0 and lower.diagonal().square().min() > _tolerance(covariance) else None


def _tolerance(covariance: Tensor) -> float:
    """What a variance may come to by rounding alone."""
    return len(covariance) * _EPS * float(covariance.diagonal().max())


def _factor(covariance: Tensor) -> Tensor:
    """L (d, r) with L L^T = C (d, d), where r is the numerical rank."""
    if (lower := _cholesky(covariance)) is not None:
        return lower
    # The root of a rounded zero is no rounding any more: with pivots, the factor ends where only rounding is left.
    pivoted, pivots, rank, _ = lapack.dpstrf(covariance.numpy(), tol=_tolerance(covariance), lower=1)
    factor = np.zeros((len(covariance), rank))
    factor[pivots - 1] = np.tril(pivoted)[:, :rank]  # LAPACK counts from 1
    return torch.from_numpy(factor)


def _nuclear_norm(matrix: Tensor) -> Tensor:
    """The sum of the singular values of a matrix (a, b)."""
    if min(matrix.shape) <= _SVD_LIMIT:
        singular: Tensor = torch.linalg.svdvals(matrix)
        return singular.sum()
    # The roots of the eigenvalues of a Gram matrix come several times sooner. Singular values below 1e-8 of the largest
    # are then noise of that size, which spectra that fall off smoothly, as those of features do, do not show.
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return _root_sum(torch.linalg.eigvalsh(wide @ wide.T))
