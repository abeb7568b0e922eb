"""Precision, recall, density, coverage and authenticity, computed from nearest neighbours.

Distances come in blocks of `BLOCK` x `BLOCK` and nothing as large as N x N is ever held. A block is computed in float64
(float32 on mps) and compared as float32, so that rounding does not separate equal distances.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cifargan.progress import Progress

BLOCK = 2048  # rows of either set at once: 32 MB of distances

_CPU = torch.device("cpu")


class Neighbours(NamedTuple):
    """The k nearest references of each of M queries, nearest first."""

    distances: Tensor  # (M, k) float64, CPU: Euclidean
    indices: Tensor  # (M, k) int64, CPU: rows of the references


class ManifoldScores(NamedTuple):
    """What a generator gets right (fidelity) and how much of the real images it reaches (diversity)."""

    precision: float  # share of the fake images that lie in a real ball (Kynkäänniemi et al. 2019), 0 to 1
    recall: float  # share of the real images that lie in a fake ball (same), 0 to 1
    density: (
        float  # real balls that a fake image lies in, over k (Naeem et al. 2020); about 1 if all is well, unbounded
    )
    coverage: float  # share of the real balls that hold a fake image (same), 0 to 1


class Authenticity(NamedTuple):
    """How many of M samples are more than copies, and what each is most like."""

    share: float  # of authentic samples, 0 to 1 (AuthPct / 100)
    indices: Tensor  # (M,) int64, CPU: the real image nearest to each sample
    distances: Tensor  # (M,) float64, CPU: how far that is
    ratios: (
        Tensor  # (M,) float64, CPU: the same over the distance of that real image to its own nearest; low is suspicious
    )


def nearest(
    queries: Tensor, references: Tensor, own: Tensor | None = None, *, k: int, device: torch.device = _CPU
) -> Neighbours:
    """Find the k nearest references of each query. The order of references at equal distance is undefined.

    Args:
        queries: (M, d) of any number type, on any device.
        references: (N, d) likewise.
        own: (M,) int64 on the CPU: query i is reference own[i], which does not count as its neighbour. None: no query
            is a reference.
        k: neighbours of each, 1 to N, or to N - 1 with `own`.
        device: where to compute.

    Raises:
        ValueError: there are fewer than k references, the sets differ in d, or some rows are not finite.
    """
    _, indices = _smallest(queries, references, own, k=k, device=device)
    distances = torch.empty(len(queries), k, dtype=torch.float64)
    for rows, x in _blocks(queries, device):
        for j in range(k):
            y = _numbers(references[indices[rows, j].to(references.device)], device)
            # |x|^2 + |y|^2 - 2 x.y loses the digits of a small distance; the difference itself keeps them.
            distances[rows, j] = (x - y).square().sum(dim=1).cpu().double().sqrt()
    distances, order = distances.sort(dim=1, stable=True)
    return Neighbours(distances, indices.gather(1, order))


def manifold_scores(real: Tensor, fake: Tensor, *, k: int = 5, device: torch.device = _CPU) -> ManifoldScores:
    """Precision, recall, density and coverage, as the package `prdc` of Naeem et al. (2020) defines them.

    The ball around an image reaches to its k-th nearest neighbour in its own set, itself not counted, and holds what is
    strictly nearer.

    Args:
        real: (N, d) features, on any device; float32, or rounded to it.
        fake: (M, d) features likewise.
        k: the neighbour that sets the radii, at least 1 and less than N and M.
        device: where to compute.

    Raises:
        ValueError: a set has no k neighbours, the sets differ in d, or some rows are not finite.
    """
    _check(real, fake)
    real_radii, fake_radii = (_radii(side, k=k, device=device) for side in (real, fake))
    balls = torch.zeros(len(fake), dtype=torch.int64, device=device)  # real ones that each fake image lies in
    recalled = torch.zeros(len(real), dtype=torch.bool, device=device)
    covered = torch.zeros(len(real), dtype=torch.bool, device=device)
    for rows, real_block in _shown_blocks(real, device):
        for columns, fake_block in _blocks(fake, device):
            distances = _squared_distances(real_block, fake_block).float().sqrt()  # (A, B)
            in_real = distances < real_radii[rows].unsqueeze(1)
            balls[columns] += in_real.sum(dim=0)
            covered[rows] |= in_real.any(dim=1)
            recalled[rows] |= (distances < fake_radii[columns]).any(dim=1)
    return ManifoldScores(
        precision=_share(balls > 0),
        recall=_share(recalled),
        density=1 / k * (int(balls.sum()) / len(fake)),
        coverage=_share(covered),
    )


def authenticity(real: Tensor, fake: Tensor, *, device: torch.device = _CPU) -> Authenticity:
    """The share of samples that are no copies (Alaa et al. 2022); AuthPct (Stein et al. 2023) is 100 times it.

    A sample is authentic if it is farther from its nearest real image than that image is from its own nearest in the
    real set. Where the real set holds that image twice, this is 0: any other sample is authentic then (its ratio is
    infinite), while a third copy is not (its ratio is 0).

    Args:
        real: (N, d) features, N at least 2, on any device.
        fake: (M, d) features likewise, M at least 1.
        device: where to compute.

    Raises:
        ValueError: a set is too small, the sets differ in d, or some rows are not finite.
    """
    if len(fake) < 1:
        raise ValueError("authenticity needs at least 1 sample")
    found = nearest(fake, real, k=1, device=device)
    indices, distances = found.indices.squeeze(1), found.distances.squeeze(1)  # (M, 1) -> (M,)
    copied, position = torch.unique(indices, return_inverse=True)  # only of these is the own neighbour wanted
    own = nearest(real[copied.to(real.device)], real, copied, k=1, device=device).distances.squeeze(1)[position]
    ratios = torch.where(distances > 0, distances / own, 0.0)
    return Authenticity(_share(distances > own), indices, distances, ratios)


def _radii(features: Tensor, *, k: int, device: torch.device) -> Tensor:
    """The distance (N,) of each row to its k-th nearest other, float32 on `device`."""
    squared, _ = _smallest(features, features, torch.arange(len(features)), k=k, device=device)
    return squared[:, -1].float().sqrt()


def _smallest(
    queries: Tensor, references: Tensor, own: Tensor | None, *, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The k smallest squared distances of each query (M, k), ascending, on `device`, and whose they are (M, k), CPU."""
    _check(queries, references)
    others = len(references) - (own is not None)
    if not 1 <= k <= others:
        raise ValueError(f"{k} nearest neighbours requested, but there are {max(others, 0)}")
    squared, indices = [], []
    for rows, x in _shown_blocks(queries, device):
        best, whose = x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64, device=device)
        for columns, y in _blocks(references, device):
            block = _squared_distances(x, y)  # (A, B)
            if own is not None:
                position = torch.arange(columns.start, columns.stop, device=device)
                block.masked_fill_(own[rows].to(device).unsqueeze(1) == position, torch.inf)
            near, order = block.topk(min(k, len(y)), dim=1, largest=False)
            candidates, whose = torch.cat([best, near], dim=1), torch.cat([whose, order + columns.start], dim=1)
            best, order = candidates.topk(min(k, candidates.shape[1]), dim=1, largest=False)
            whose = whose.gather(1, order)
        squared.append(best)
        indices.append(whose.cpu())
    return torch.cat(squared), torch.cat(indices)


def _blocks(features: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """`BLOCK` rows at a time, and which they are."""
    for start in range(0, len(features), BLOCK):
        rows = slice(start, min(start + BLOCK, len(features)))
        yield rows, _numbers(features[rows], device)


def _shown_blocks(features: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """`_blocks`, each compared with a whole other set before the next: minutes on a CPU."""
    with Progress(len(features), label="distances between features", unit="image") as progress:
        for rows, x in _blocks(features, device):
            yield rows, x
            progress.update(len(x))


def _numbers(features: Tensor, device: torch.device) -> Tensor:
    return features.to(device).to(torch.float32 if device.type == "mps" else torch.float64)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(A, B), of rows (A, d) and (B, d)."""
    return torch.addmm(x.square().sum(dim=1, keepdim=True) + y.square().sum(dim=1), x, y.T, alpha=-2).clamp(min=0)


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _check(a: Tensor, b: Tensor) -> None:
    """Raises ValueError where distances between the rows of `a` and `b` make no sense."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, d) and (M, d), not {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("some of the features are not finite")
