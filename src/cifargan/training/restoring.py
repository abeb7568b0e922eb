"""State dicts back into networks and optimisers, or one line that says why they do not fit."""

import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.runs.checkpoint import State


def load_network(network: nn.Module, state: State, name: str) -> None:
    """Load a state dict, or say in one line how it differs.

    Raises:
        UserError: a missing or superfluous tensor, or one of another shape.
    """
    require_fits(network, state, name)
    network.load_state_dict(state)


def require_fits(network: nn.Module, state: State, name: str) -> None:
    """Check that a state dict is of such a network, be it one without memory (on the device `meta`).

    Raises:
        UserError: a missing or superfluous tensor, or one of another shape.
    """
    own = network.state_dict()
    for key in [*own, *state]:
        if key not in state or key not in own or state[key].shape != own[key].shape:
            here, there = (tuple(d[key].shape) if key in d else "absent" for d in (own, state))
            raise UserError(f"the checkpoint is of another {name}: {key} is {there} there and {here} here")


def load_optimizer(optimizer: torch.optim.Optimizer, state: State, name: str) -> None:
    """Load the moments of every weight; the settings stay those of this run, so that new ones take effect.

    Raises:
        UserError: they are the moments of another kind of optimiser.
    """
    kind = type(optimizer).__name__
    if state["kind"] != kind:
        raise UserError(f"the checkpoint is of another optimizer: the {name} has {state['kind']} there and {kind} here")
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, moments in optimizer.state.items():
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                # Fused updates want the layout of the weight, which another run may have chosen differently.
                moments[key] = torch.empty_like(weight).copy_(value)
