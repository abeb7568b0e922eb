"""State dicts back into networks and optimisers. What a whole gan says of other networks is in test_step.py."""

import pytest
import torch
from torch import nn

from cifargan.errors import UserError
from cifargan.training.optimizers import adam, rmsprop
from cifargan.training.restoring import load_network, load_optimizer, require_fits


def trained(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, object]:
    torch.autograd.backward(network(torch.ones(2, 3, 5, 5)).sum())
    optimizer.step()
    return {"kind": type(optimizer).__name__, **optimizer.state_dict()}


def test_a_network_takes_what_fits_and_is_left_alone_by_what_does_not() -> None:
    network, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    load_network(network, other.state_dict(), "toy")
    assert torch.equal(network.weight, other.weight)
    before = network.weight.clone()
    for state, message in (
        ({"weight": torch.zeros(4, 3, 3, 3)}, r"another toy: bias is absent there and \(4,\) here"),
        ({**other.state_dict(), "scale": torch.ones(())}, r"another toy: scale is \(\) there and absent here"),
        (
            {"weight": torch.zeros(4, 3, 5, 5), "bias": torch.zeros(4)},
            r"weight is \(4, 3, 5, 5\) there and \(4, 3, 3, 3\) ",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load_network(network, state, "toy")
        assert torch.equal(network.weight, before)


def test_a_network_without_memory_can_be_asked() -> None:
    with torch.device("meta"):
        network = nn.Conv2d(3, 4, 3)
    require_fits(network, nn.Conv2d(3, 4, 3).state_dict(), "toy")
    with pytest.raises(UserError, match="another toy"):
        require_fits(network, nn.Conv2d(3, 5, 3).state_dict(), "toy")


def test_moments_take_the_layout_of_their_weight() -> None:
    plain = nn.Conv2d(3, 4, 3)
    state = trained(adam(plain.parameters()), plain)
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = adam(network.parameters(), lr=1.0, fused=True)
    load_optimizer(optimizer, state, "toy")
    moments = optimizer.state[network.weight]
    assert moments["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moments["exp_avg"], state["state"][0]["exp_avg"])  # type: ignore[index]
    assert optimizer.param_groups[0]["lr"] == 1.0  # the settings are this run's


def test_moments_of_another_kind_of_optimizer_are_refused() -> None:
    network = nn.Conv2d(3, 4, 3)
    state = trained(adam(network.parameters()), network)
    with pytest.raises(UserError, match="another optimizer: the toy has Adam there and RMSprop here"):
        load_optimizer(rmsprop(network.parameters()), state, "toy")
