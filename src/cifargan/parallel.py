"""Several processes that train one model: who is who, and how they stay one run.

Every process draws the random numbers of the whole batch from equal generators and keeps its own rows. So a run on N
processes sees the same images, latents and augmentations as a run on one, and its generators, which are in the
checkpoint, are those of all processes. Without `torch.distributed`, all here is the identity.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


def processes() -> int:
    """How many processes train this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def world_size() -> int:
    """How many processes work on the batch at hand."""
    return 1 if _alone else processes()


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """While entered, this process computes by itself: what is sampled from a copy needs no others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def own_part(whole: Tensor, *, dim: int = 0) -> Tensor:
    """This process's share of what all of them have: contiguous rows, as many for each."""
    n = whole.shape[dim] // world_size()
    return whole.narrow(dim, rank() * n, n)


def own_rows(draw: Callable[[int], Tensor], n: int, *, dim: int = 0) -> Tensor:
    """Draw for all processes and keep what is this one's.

    Args:
        draw: draws so many rows; called alike by all processes.
        n: rows of one process.
        dim: which dimension the rows are.
    """
    return own_part(draw(n * world_size()), dim=dim)


def summed(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, through which gradients flow back to each."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total


class _Sum(torch.autograd.Function):
    """Every process's loss depends on every process's summand, so the gradients add up over the processes as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 - the signature of a Function
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


@torch.no_grad()
def averaged(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes; no gradients."""
    return summed(x) / world_size() if world_size() > 1 else x


@torch.no_grad()
def smallest(x: Tensor) -> Tensor:
    """The elementwise minimum of a tensor over all processes."""
    if world_size() == 1:
        return x
    least = x.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least
