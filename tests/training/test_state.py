"""Seeding, saving and restoring of what training draws from."""

import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from cifargan.errors import UserError
from cifargan.training.optimizers import adam, rmsprop
from cifargan.training.state import (
    be_deterministic,
    load_network,
    load_optimizer,
    require_fits,
    restore_rng,
    rng_state,
    seed_everything,
    use_tf32,
)

CPU = torch.device("cpu")


def draws() -> tuple[float, float, list[float]]:
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()  # noqa: NPY002 - what libraries draw from


def test_a_seed_decides_what_is_drawn_on_the_host() -> None:
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_a_restored_state_continues_where_it_was_saved_and_ignores_absent_devices() -> None:
    torch.manual_seed(0)
    torch.rand(5)
    state = rng_state(CPU)
    assert all(value.dtype == torch.uint8 and value.device == CPU for value in state.values())
    expected = torch.randn(7)
    torch.manual_seed(99)
    restore_rng(state | {"cuda": torch.zeros(16, dtype=torch.uint8)}, CPU)
    assert torch.equal(torch.randn(7), expected)


def test_determinism_can_be_switched_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    be_deterministic(False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    be_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's choice stays
    be_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    be_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize("enabled", [True, False])
def test_tf32_concerns_convolutions_alone_and_all_of_torch_can_read_it(enabled: bool) -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        use_tf32(enabled)
        assert torch.backends.cudnn.allow_tf32 is enabled  # raises where flags differ that are read as one
        convolutions = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        assert (convolutions == "tf32") is enabled
        assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        use_tf32(before)


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
