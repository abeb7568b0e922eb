"""Number formats of the training step: float32, or autocast to bfloat16 or float16 over float32 masters."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from cifargan.errors import UserError

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]


def resolve(name: PrecisionName, device: torch.device) -> PrecisionName:
    """What `auto` means on a device: bf16 where the GPU computes in it, else fp16 on CUDA, else fp32."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


class Precision:
    """Autocast, loss scaling (fp16 alone needs it), and the optimiser step that goes with them.

    Losses, statistics and master weights stay in float32. With fp16 an update whose gradients overflowed is skipped: a
    fused optimiser does so on the device, any other has the host look at them once an update. With bf16 and fp32 nothing
    waits.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = resolve(name, device)
        if self.name == "fp16" and device.type != "cuda":
            raise UserError(f"precision=fp16 needs a CUDA device, this is {device.type}: choose bf16 or fp32")
        self.device = device
        self.dtype = torch.float16 if self.name == "fp16" else torch.bfloat16
        self.reset()

    def reset(self) -> None:
        """Start with a fresh loss scale: a used one remembers an update that was interrupted."""
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        # A weight is read once a pass, so a cache of its casts saves nothing; in a captured step it would go stale.
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.name != "fp32", cache_enabled=False)

    def scale(self, loss: Tensor) -> Tensor:
        """A loss times fp16's scale; the loss itself in other formats."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""
        torch.autograd.backward(self.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Update the weights, drop the gradients, and return their norm before that, () float32 on the device.

        The norm is 0 for an update that fp16 had to skip.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.scaler.is_enabled():
            # Of gradients that are still scaled: the optimiser takes the scale out in passing.
            norm = norm / self.scaler.scale(torch.ones_like(norm))
            # An overflow costs one update and lowers the scale: that is how scaling works, and no divergence.
            norm = norm.where(norm.isfinite(), 0.0)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def figures(self) -> dict[str, float]:
        """What to log: the loss scale, where there is one."""
        return {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}

    def tensors(self) -> list[Tensor]:
        """What `step` changes on the device: the loss scale and its history, once there has been an update with one."""
        if not self.scaler.is_enabled():
            return []
        return [t for t in (self.scaler._scale, self.scaler._growth_tracker) if t is not None]

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and its history."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
