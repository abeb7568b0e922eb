"""Distances between sets of features, as pure functions of tensors.

None of them draws from a global random generator: what is shuffled is shuffled by fixed seeds.
"""

import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

IS_SPLITS = 10


def mean_and_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) and the covariance (d, d), N - 1 normalised, of features (N, d), in float64.

    Raises:
        ValueError: fewer than two rows, which have no covariance.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 rows of features, got {len(features)}")
    features = features.double()
    return features.mean(dim=0), features.T.cov()


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """The squared Fréchet distance between two normal distributions (Heusel et al. 2017, eq. 6).

    |ma - mb|^2 + tr(Ca + Cb) - 2 tr((Ca Cb)^(1/2)), with the last trace as the sum of the roots of the eigenvalues of
    Ra Cb Ra, Ra = Ca^(1/2), which is symmetric and has the same eigenvalues as Ca Cb. Singular covariances are fine.

    Args:
        mean_a: (d,) float64.
        covariance_a: (d, d) float64, symmetric and positive semi-definite.
        mean_b: (d,) float64.
        covariance_b: (d, d) float64, symmetric and positive semi-definite.

    Returns:
        The distance, at least 0.
    """
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return float(distance.clamp(min=0))  # equal distributions come out a rounding below it


def kernel_distance(real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018): mean and deviation of the unbiased MMD^2 with the kernel (x.y/d + 1)^3.

    The deviation is that over the subsets, which is no standard error. Where a set is no larger than a subset, every
    subset holds all of it.

    Args:
        real: (N, d) features, N at least 2.
        fake: (M, d) features, M at least 2.
        subsets: how many random subsets to average over.
        subset_size: images in each; at most N and M are taken.

    Raises:
        ValueError: fewer than two rows, which the unbiased estimate needs.
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 rows of features on each side, got {size}")
    result = kid_features_to_metric(
        real.float().cpu(), fake.float().cpu(), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    return result["kernel_inception_distance_mean"], result["kernel_inception_distance_std"]


def inception_score(logits: Tensor, *, splits: int = IS_SPLITS) -> tuple[float, float]:
    """IS (Salimans et al. 2016): exp of the mean KL(p(y|x) || p(y)), mean and population deviation over `splits`.

    Args:
        logits: (N, K) class logits of the Inception network.
        splits: parts that the images are dealt into, at most N.

    Raises:
        ValueError: fewer images than splits.
    """
    if len(logits) < splits:
        raise ValueError(f"an Inception Score of {splits} splits needs as many images, got {len(logits)}")
    result = isc_features_to_metric(logits.cpu(), splits=splits)
    return result["inception_score_mean"], result["inception_score_std"]
