"""Latents: truncated, looked up by seed, class and index, and the way from one to another.

Everything here draws from its own random generators; the global ones are never touched.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifargan.errors import UserError

BLOCK = 20  # latents drawn from one random stream


def truncated_normal(n: int, latent_dim: int, *, truncation: float | None, generator: torch.Generator) -> Tensor:
    """Draw latents whose coordinates are standard normal, conditioned on |z| <= truncation.

    This is the truncation trick of Brock et al. 2019 ("Large Scale GAN Training", section 3.1), which redraws each
    coordinate beyond the threshold. The inverse distribution function, z = sqrt(2) erfinv(u) with u uniform on
    (-erf(t / sqrt(2)), erf(t / sqrt(2))), gives the same distribution in one go however small t is, and moves a latent
    continuously inwards as t shrinks. Multiplying z by t would be another distribution.

    Args:
        n: How many latents.
        latent_dim: Z, their length.
        truncation: The threshold t > 0; None for no truncation.
        generator: Where the randomness comes from, on the CPU.

    Returns:
        (n, Z) float32 on the CPU.

    Raises:
        UserError: `truncation` is not above 0.
    """
    if truncation is not None and not truncation > 0:
        raise UserError(f"truncation={truncation} cannot be: give a threshold above 0, or none to sample untruncated.")
    threshold = math.inf if truncation is None else truncation
    u = torch.rand(n, latent_dim, generator=generator, dtype=torch.float64)
    centred = 2 * u - 1 + 2**-53  # u is a multiple of 2^-53 in [0, 1): half a step up makes it symmetric and never -1
    return (math.sqrt(2) * torch.erfinv(math.erf(threshold / math.sqrt(2)) * centred)).float()


def latents(labels: Tensor, indices: Tensor, *, latent_dim: int, truncation: float | None, seed: int) -> Tensor:
    """Look up the latents of given images: image `index` of class `label` under `seed` always has the same one.

    Each class has an endless list of latents, drawn in blocks of `BLOCK` from a stream seeded by (seed, label, block
    number). So neither the batch size, nor how many images are asked for, nor which other classes are, matters.

    Args:
        labels: (n,) int64 on the CPU.
        indices: (n,) int64 on the CPU, the image's number within its class.
        latent_dim: Z.
        truncation: As in `truncated_normal`.
        seed: At least 0.

    Returns:
        (n, Z) float32 on the CPU.

    Raises:
        UserError: `truncation` is not above 0 or `seed` is negative.
    """
    keys = list(zip(labels.tolist(), (indices // BLOCK).tolist(), strict=True))
    blocks = {
        key: truncated_normal(BLOCK, latent_dim, truncation=truncation, generator=random_stream(seed, *key))
        for key in dict.fromkeys(keys)
    }
    return torch.stack([blocks[key][row] for key, row in zip(keys, (indices % BLOCK).tolist(), strict=True)])


def random_stream(seed: int, *key: int, device: torch.device = torch.device("cpu")) -> torch.Generator:  # noqa: B008 - immutable
    """A random generator of its own for each seed and key; the same on every machine, but not on every kind of device.

    Raises:
        UserError: `seed` is negative.
    """
    if seed < 0:
        raise UserError(f"seed={seed} cannot be: give a seed of 0 or above.")
    # torch's CPU generator looks at 32 bits of its seed alone, so the key is hashed into them.
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0]))


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Go from one latent to another along a great circle, past points as likely as the ends (Shoemake 1985).

    Args:
        start: (N, Z) float, where t = 0.
        end: (N, Z) float, where t = 1.
        t: The way gone, in [0, 1].

    Returns:
        (N, Z) float; the straight line where the two directions are parallel or opposite.
    """
    angle = F.cosine_similarity(start, end, dim=1).clamp(-1, 1).acos().unsqueeze(1)  # (N, 1)
    arc = (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
    return torch.where(torch.sin(angle) > 1e-3, arc, torch.lerp(start, end, t))
