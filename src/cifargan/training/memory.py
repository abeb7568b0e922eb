"""What to do when memory runs out in the middle of an update: undo its half, and take smaller parts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cifargan import distributed
from cifargan.training.rng import restore_rng, rng_state


def may_try_again(device: torch.device) -> bool:
    """Whether an update can be repeated here: not while it is being recorded, nor when other processes wait for it."""
    return not (distributed.world_size() > 1 or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()))


class Undo:
    """Remembers what passes through networks change before any weight is updated, and puts it back.

    Args:
        tensors: the buffers that a pass changes in place: few and small beside the weights.
        generators: random generators that it draws from, beside the default ones.
        optimizers: whose gradients it adds to; there are none between updates.
        device: whose default generator it draws from.
    """

    def __init__(
        self,
        *,
        tensors: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        optimizers: Sequence[torch.optim.Optimizer],
        device: torch.device,
    ) -> None:
        self.tensors = list(tensors)
        self.generators = list(generators)
        self.optimizers = optimizers
        self.device = device
        self._before = [tensor.clone() for tensor in self.tensors]
        self._default = rng_state(device)
        self._own = [generator.get_state() for generator in self.generators]

    @torch.no_grad()
    def __call__(self) -> None:
        """Put it back, and give the memory of what was half done back to the device."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for tensor, before in zip(self.tensors, self._before, strict=True):
            tensor.copy_(before)
        restore_rng(self._default, self.device)
        for generator, state in zip(self.generators, self._own, strict=True):
            generator.set_state(state)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
