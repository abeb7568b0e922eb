"""State of a training: random generators, and state dicts back into networks and optimisers."""

import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifargan.errors import UserError


def seed_everything(seed: int) -> None:
    """Seed the host's and every device's default generator."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries below draw from it
    torch.manual_seed(seed)


def be_deterministic(enabled: bool) -> None:
    """Switch torch to algorithms that give the same bits every time, or back."""
    if enabled:
        # cuBLAS reads this when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.benchmark = not enabled


def use_tf32(enabled: bool) -> None:
    """Let float32 convolutions on a GPU round their factors to TF32, or not. Products of matrices never do."""
    # Not `cudnn.conv.fp32_precision` alone: export and compilation refuse to read flags of cuDNN that differ.
    torch.backends.cudnn.allow_tf32 = enabled


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that the training step uses, as uint8 CPU tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore `rng_state`. A state of a device that is not here is left alone."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def load_network(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict; each weight keeps its memory layout.

    Raises:
        UserError: a missing or superfluous tensor, or one of another shape.
    """
    require_fits(network, state, name)
    network.load_state_dict(state)


def require_fits(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Check that a state dict fits a network, which may be on the device `meta` and take no memory.

    Raises:
        UserError: a missing or superfluous tensor, or one of another shape.
    """
    own = network.state_dict()
    for key in [*own, *state]:
        if key not in state or key not in own or state[key].shape != own[key].shape:
            here, there = (tuple(d[key].shape) if key in d else "absent" for d in (own, state))
            raise UserError(f"the checkpoint is of another {name}: {key} is {there} there and {here} here")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], name: str) -> None:
    """Load the moments of every weight; the settings stay those of this run, so that new ones take effect.

    Raises:
        UserError: they are the moments of another kind of optimiser, or of other weights.
    """
    kind = type(optimizer).__name__
    if state["kind"] != kind:
        raise UserError(f"the checkpoint is of another optimizer: the {name} has {state['kind']} there and {kind} here")
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, moments in optimizer.state.items():
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                # Fused updates need the layout of the weight; the file holds all tensors contiguous.
                moments[key] = torch.empty_like(weight).copy_(value)
            elif not isinstance(value, Tensor) or value.dim() > 0:
                raise UserError(f"the checkpoint is of another optimizer: {key} of the {name} is not of its weights")
