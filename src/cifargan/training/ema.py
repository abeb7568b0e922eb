"""A moving average of the generator's weights, which is what gets sampled and scored."""

import copy
import math

import torch
from torch import nn

from cifargan.errors import UserError
from cifargan.models.interface import Generator


class WeightAverage:
    """Exponential moving average of a generator's parameters.

    Buffers are copied, not averaged: the mean of two unit vectors is no unit vector, so an averaged u of spectral norm
    would make sigma too small, and a step counter has no mean.

    Args:
        generator: the network being trained.
        decay: in [0, 1), per step; 0 makes the average equal to the last weights.
        start: the step before which the average only follows the weights.
        ramp: if > 0, the half-life is at most `ramp` times the steps since `start` (Karras et al. 2022, EDM), so that
            a young run is not held back by weights that it has long left behind.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(self, generator: Generator, *, decay: float = 0.0, start: int = 0, ramp: float = 0.0) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError(f"trainer.ema.decay={decay}: must lie in [0, 1)")
        if start < 0:
            raise UserError(f"trainer.ema.start={start}: must be at least 0")
        if not ramp >= 0.0:
            raise UserError(f"trainer.ema.ramp={ramp}: must be at least 0")
        self.live = generator
        self.decay = decay
        self.start = start
        self.ramp = ramp
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)
        weight = next(self.generator.parameters())
        self._decay_now = torch.zeros((), dtype=weight.dtype, device=weight.device)

    def decay_at(self, step: int) -> float:
        """The decay in effect at generator step `step` (counted from 1)."""
        if step <= self.start or self.decay == 0.0:
            return 0.0
        if self.ramp == 0.0:
            return self.decay
        ramped = math.pow(0.5, 1.0 / (self.ramp * (step - self.start)))
        return min(self.decay, ramped)

    def prepare(self, step: int) -> None:
        """Have the decay of generator step `step` (counted from 1) ready on the device."""
        self._decay_now.fill_(self.decay_at(step))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights, `ema = live - d * (live - ema)`, on the device alone.

        This form takes the live weights exactly where d = 0, and rounding d moves the half-life, never the average.
        """
        ema, live = ([weight.data for weight in network.parameters()] for network in (self.generator, self.live))
        lag = torch._foreach_sub(live, ema)
        torch._foreach_mul_(lag, self._decay_now)
        torch._foreach_copy_(ema, live)
        torch._foreach_sub_(ema, lag)
        copy_buffers(self.live, self.generator)


@torch.no_grad()
def copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Copy every buffer, integer ones included, from one network to its twin."""
    # A network need not have any buffer, and the fused copy refuses an empty list.
    if buffers := list(target.buffers()):
        torch._foreach_copy_(buffers, list(source.buffers()))
