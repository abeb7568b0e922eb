"""What a run does about itself when its numbers stop being numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cifargan.errors import UserError
from cifargan.training.step import GANStep

RATE_FACTOR = 0.5  # of both learning rates, at each rollback


class DivergedError(UserError):
    """A loss, a gradient or a weight stopped being a number.

    Attributes:
        reason: what is no number, and since when.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}{advice}")
        self.reason = reason
        self._advice = advice

    def __reduce__(self) -> tuple[Any, ...]:
        """How one process hands it on to another."""
        return type(self), (self.reason, self._advice)


def networks_of(gan: GANStep) -> dict[str, nn.Module]:
    """The networks whose weights decide how a run goes on, by the names that a message gives them."""
    return {"generator": gan.generator, "discriminator": gan.discriminator, "average": gan.ema.generator}


@torch.no_grad()
def first_broken(networks: Mapping[str, nn.Module]) -> str | None:
    """The first network with a weight or a buffer that is not finite. Waits for the device, once for all of them."""
    largest = []
    for network in networks.values():
        tensors = [
            t.detach() for t in (*network.parameters(), *network.buffers()) if t.is_floating_point() and t.numel()
        ]
        largest.append(torch.stack([norm.float() for norm in torch._foreach_norm(tensors, torch.inf)]).max())
    finite = torch.stack(largest).isfinite().tolist()
    return next((name for name, fine in zip(networks, finite, strict=True) if not fine), None)


def renew_noise(gan: GANStep, *, seed: int, rollbacks: int) -> None:
    """Have everything that a round draws, but for the order of the images, come from another stream of numbers."""
    other = (seed + 1) * 1_000_003 + rollbacks
    torch.manual_seed(other)
    gan.stream.generator.manual_seed(other)
