"""What the tests of several networks share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw the same weights and inputs in every run of a test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def inputs_of() -> Callable[[nn.Module], list[Tensor]]:
    """A function that starts a list of the first input of each later call of a module."""

    def record(module: nn.Module) -> list[Tensor]:
        seen: list[Tensor] = []
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        return seen

    return record
