"""Load state dicts into networks and optimisers, or say in one line why they do not fit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifargan.errors import UserError


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
