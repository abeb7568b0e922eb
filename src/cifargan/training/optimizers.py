"""The optimisers that the recipes name.

Each takes `parameters` and its settings. One that torch has a fused kernel for takes `fused`; one whose updates a CUDA
graph can replay takes `recorded`.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn

from cifargan.errors import UserError


def adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 2e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    eps: float = 1e-8,
    fused: bool = False,
    recorded: bool = False,
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015).

    Args:
        parameters: what to optimise.
        lr: learning rate, positive.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        fused: one kernel for all weights, in place of one for each operation on all weights; it also takes fp16's loss
            scale out without the host.
        recorded: learning rate and step counter lie on the device, as a CUDA graph needs them.
    """
    _check(lr, eps)
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise UserError(f"optimizer betas={betas}: each must lie in [0, 1)")
    weights = list(parameters)
    kind = {"fused": True} if fused else {"foreach": True}
    return torch.optim.Adam(weights, lr=_rate(lr, weights, recorded), betas=betas, eps=eps, capturable=recorded, **kind)


def rmsprop(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 5e-5,
    alpha: float = 0.99,
    eps: float = 1e-8,
    recorded: bool = False,
) -> torch.optim.Optimizer:
    """RMSprop (Tieleman & Hinton 2012), without momentum.

    Args:
        parameters: what to optimise.
        lr: learning rate, positive.
        alpha: decay of the squared gradients' mean, in [0, 1).
        eps: added to its root.
        recorded: as in `adam`.
    """
    _check(lr, eps)
    if not 0.0 <= alpha < 1.0:
        raise UserError(f"optimizer alpha={alpha}: must lie in [0, 1)")
    weights = list(parameters)
    return torch.optim.RMSprop(
        weights, lr=_rate(lr, weights, recorded), alpha=alpha, eps=eps, capturable=recorded, foreach=True
    )


def _rate(lr: float, weights: list[nn.Parameter], recorded: bool) -> float | torch.Tensor:
    return torch.tensor(lr, device=weights[0].device) if recorded else lr


def _check(lr: float, eps: float) -> None:
    if not (0.0 < lr < math.inf and 0.0 < eps < math.inf):
        raise UserError(f"optimizer lr={lr}, eps={eps}: both must be positive, finite numbers")
