"""The optimisers that the recipes name."""

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
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015).

    Args:
        parameters: what to optimise.
        lr: learning rate, positive.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
    """
    _check(lr, eps)
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise UserError(f"optimizer betas={betas}: each must lie in [0, 1)")
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, foreach=True)


def rmsprop(
    parameters: Iterable[nn.Parameter], *, lr: float = 5e-5, alpha: float = 0.99, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """RMSprop (Tieleman & Hinton 2012), without momentum.

    Args:
        parameters: what to optimise.
        lr: learning rate, positive.
        alpha: decay of the squared gradients' mean, in [0, 1).
        eps: added to its root.
    """
    _check(lr, eps)
    if not 0.0 <= alpha < 1.0:
        raise UserError(f"optimizer alpha={alpha}: must lie in [0, 1)")
    return torch.optim.RMSprop(parameters, lr=lr, alpha=alpha, eps=eps, foreach=True)


def _check(lr: float, eps: float) -> None:
    if lr <= 0.0 or eps <= 0.0:
        raise UserError(f"optimizer lr={lr}, eps={eps}: both must be positive")
