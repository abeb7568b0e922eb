"""Images that are there twice, and images that are nearly there twice.

Equal images have equal bytes. For nearly equal ones every image is reduced to `REDUCED` x `REDUCED` colours, the mean of
each colour is taken off and the rest is scaled to length 1, so that brightness, tint and contrast do not matter: with the
tint left in, all birds in blue skies would be alike. One matrix product for each pair of blocks then compares all with
all, and with all mirrored images. Pairs with a cosine of at least `CANDIDATE` are compared at full size: the mean of each
colour is taken off, the standard deviation is made 1, and the mean absolute difference must not exceed `NEAR`. Unrelated
noise has 1.13 there, equal images 0. Flat images have nothing to compare and are left to the comparison of bytes.
"""

import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cifargan.progress import Progress

REDUCED = 8  # height and width of what all pairs are compared at
BLOCK = 4096  # images of either side at once: 64 MB of cosines
CANDIDATE = 0.95  # cosine of reduced images from which on a pair is looked at closely
NEAR = 0.22  # mean absolute difference in standard deviations
FLAT = 4.0  # levels of standard deviation: an image below shows nothing
CONFIRM = 2048  # pairs at full size at once
MAX_PAIRS = 100_000  # that are kept; a set of variations of one image has billions


class Duplicates(NamedTuple):
    """What was found.

    Images are counted through from 0 over all splits.
    """

    equal: list[list[int]]  # groups of at least two with the same bytes, ascending, in the order of their first
    near: list["NearPair"]  # no two of one group, the nearest first
    complete: bool  # whether all near pairs are listed


class NearPair(NamedTuple):
    """Two images that differ little."""

    first: int
    second: int  # larger than `first`
    difference: float  # mean absolute, in standard deviations
    mirrored: bool  # whether it is the mirror image of the second that is near the first


def find_duplicates(images: Tensor) -> Duplicates:
    """Look for equal and nearly equal images.

    Args:
        images: (N, 3, H, W) uint8.

    Returns:
        Equal groups, and near pairs of the first image of each group and of all other images.
    """
    groups = _equal(images)
    repeated = {index for group in groups for index in group[1:]}
    # Of equal images one speaks for all.
    single = torch.tensor([index for index in range(len(images)) if index not in repeated], dtype=torch.int64)
    single = single[_spread(images, single) >= FLAT]
    near, complete = _near(images, single)
    return Duplicates(groups, sorted(near, key=lambda pair: (pair.difference, pair.first, pair.second)), complete)


def _equal(images: Tensor) -> list[list[int]]:
    owners: dict[bytes, list[int]] = {}
    for index, image in enumerate(images.flatten(1).numpy()):
        owners.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), []).append(index)
    return [group for group in owners.values() if len(group) > 1]


def _spread(images: Tensor, chosen: Tensor) -> Tensor:
    """The standard deviation (M,) of each chosen image around its mean colour, in levels."""
    parts = [_centred(images[part]).square().mean(dim=(1, 2, 3)).sqrt() for part in torch.split(chosen, BLOCK)]
    return torch.cat(parts) if parts else torch.empty(0)


def _near(images: Tensor, chosen: Tensor) -> tuple[list[NearPair], bool]:
    """The near pairs among chosen images (M,), and whether these are all."""
    reduced = [_reduced(images[part]) for part in torch.split(chosen, BLOCK)]  # (B, 3, R, R) each
    found: list[NearPair] = []
    blocks = len(reduced)
    with Progress(blocks * (blocks + 1) // 2, label="near-duplicates", unit="block") as progress:
        for i, rows in enumerate(reduced):
            for j in range(i, blocks):
                for mirrored in (False, True):
                    columns = reduced[j].flip(-1) if mirrored else reduced[j]
                    close = rows.flatten(1) @ columns.flatten(1).T >= CANDIDATE  # (B, B')
                    if i == j:
                        close = close.triu(diagonal=1)
                    pairs = close.nonzero()  # (P, 2)
                    for part in torch.split(pairs, CONFIRM):
                        first, second = chosen[part[:, 0] + i * BLOCK], chosen[part[:, 1] + j * BLOCK]
                        found += _confirmed(images, first, second, mirrored=mirrored)
                        if len(found) >= MAX_PAIRS:
                            return _nearest_only(found), False
                progress.update(1)
    return _nearest_only(found), True


def _nearest_only(pairs: list[NearPair]) -> list[NearPair]:
    """Each pair once: a symmetric image is near both as it is and mirrored."""
    best: dict[tuple[int, int], NearPair] = {}
    for pair in pairs:
        key = (pair.first, pair.second)
        if key not in best or pair.difference < best[key].difference:
            best[key] = pair
    return list(best.values())


def _reduced(images: Tensor) -> Tensor:
    small = F.adaptive_avg_pool2d(images.float(), min(REDUCED, images.shape[-1]))
    small = _centred(small)
    length = small.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return small / length.clamp(min=1e-6)


def _centred(images: Tensor) -> Tensor:
    """Images without their mean colour, (M, 3, H, W) float32."""
    levels = images.float()
    return levels - levels.mean(dim=(2, 3), keepdim=True)


def _confirmed(images: Tensor, first: Tensor, second: Tensor, *, mirrored: bool) -> list[NearPair]:
    other = images[second].flip(-1) if mirrored else images[second]
    differences = difference(images[first], other)
    close = differences <= NEAR
    rows = zip(first[close].tolist(), second[close].tolist(), differences[close].tolist(), strict=True)
    return [NearPair(a, b, value, mirrored) for a, b, value in rows]


def difference(a: Tensor, b: Tensor) -> Tensor:
    """How much images differ when their mean colour and contrast are made equal.

    Args:
        a: (M, 3, H, W) uint8.
        b: the same.

    Returns:
        (M,) float32: the mean absolute difference in standard deviations; 0 for equal images.
    """
    return (_standardised(a) - _standardised(b)).abs().mean(dim=1)


def _standardised(images: Tensor) -> Tensor:
    flat = _centred(images).flatten(1)
    return flat / flat.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
