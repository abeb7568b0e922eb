"""NaN and infinite values: noticed at log points, answered by a stop or a rollback."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifargan.errors import UserError
from cifargan.training.monitor import RunningMeans
from cifargan.training.step import GANStep

RATE_FACTOR = 0.5  # of both learning rates, at each rollback


class DivergedError(UserError):
    """A loss, a gradient or a weight is NaN or infinite.

    Attributes:
        reason: which one, and since when.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}{advice}")
        self.reason = reason
        self._advice = advice

    def __reduce__(self) -> tuple[Any, ...]:
        """How one process hands it on to another."""
        return type(self), (self.reason, self._advice)


def require_finite(gan: GANStep, means: RunningMeans, good: Sequence[Path]) -> None:
    """Check the terms since the last log point and all weights. Waits for the device.

    Args:
        gan: the networks.
        means: of the terms.
        good: the checkpoints, of which a message names the newest.

    Raises:
        DivergedError: a term, or a weight, is NaN or infinite.
    """
    networks = {"generator": gan.generator, "discriminator": gan.discriminator, "average": gan.ema.generator}
    if bad := means.first_bad():
        reason = f"{bad[0]} is not finite since step {bad[1]}"
    elif broken := first_broken(networks):
        reason = f"weights/{broken} is not finite at step {gan.step}"
    else:
        return
    there = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint had been written yet"
    raise DivergedError(
        reason,
        f": the run has diverged; {there}. "
        "Try lower learning rates (optimizer.generator.lr, optimizer.discriminator.lr) or precision=fp32",
    )


@torch.no_grad()
def first_broken(networks: Mapping[str, nn.Module]) -> str | None:
    """The first network with a weight or a buffer that is NaN or infinite. Waits for the device, once for all."""
    largest = []
    for network in networks.values():
        tensors = [
            t.detach() for t in (*network.parameters(), *network.buffers()) if t.is_floating_point() and t.numel()
        ]
        largest.append(torch.stack([norm.float() for norm in torch._foreach_norm(tensors, torch.inf)]).max())
    finite = torch.stack(largest).isfinite().tolist()
    return next((name for name, fine in zip(networks, finite, strict=True) if not fine), None)


def renew_noise(gan: GANStep, *, seed: int, rollbacks: int) -> None:
    """Reseed everything that an iteration draws, except the order of the images."""
    other = (seed + 1) * 1_000_003 + rollbacks
    torch.manual_seed(other)
    gan.stream.generator.manual_seed(other)
