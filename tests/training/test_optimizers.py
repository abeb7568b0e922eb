"""The optimisers against their papers' formulas, written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cifargan.errors import UserError
from cifargan.training.optimizers import adam, rmsprop

GRADIENTS = [0.5, -2.0, 1.0, 0.25]


def run(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> float:
    for gradient in GRADIENTS:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return parameter.item()


@pytest.mark.parametrize("fused", [False, True])
def test_adam(fused: bool) -> None:
    parameter = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    w, m, v = 1.0, 0.0, 0.0
    for t, gradient in enumerate(GRADIENTS, start=1):
        m = 0.3 * m + 0.7 * gradient
        v = 0.9 * v + 0.1 * gradient**2
        w -= 0.01 * (m / (1 - 0.3**t)) / ((v / (1 - 0.9**t)) ** 0.5 + 1e-3)
    optimizer = adam([parameter], lr=0.01, betas=(0.3, 0.9), eps=1e-3, fused=fused)
    assert run(optimizer, parameter) == pytest.approx(w, rel=1e-9)


def test_rmsprop() -> None:
    parameter = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    w, v = 1.0, 0.0
    for gradient in GRADIENTS:
        v = 0.8 * v + 0.2 * gradient**2
        w -= 0.01 * gradient / (v**0.5 + 1e-3)
    assert run(rmsprop([parameter], lr=0.01, alpha=0.8, eps=1e-3), parameter) == pytest.approx(w, rel=1e-9)


@pytest.mark.parametrize("make", [adam, rmsprop])
def test_a_captured_update_reads_its_rate_from_the_device(make: Callable[..., torch.optim.Optimizer]) -> None:
    (group,) = make([nn.Parameter(torch.zeros(3))], lr=0.25, recorded=True).param_groups
    assert isinstance(group["lr"], torch.Tensor)
    assert group["lr"].item() == 0.25
    assert group["capturable"]


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (adam, {"lr": 0.0}, "lr=0.0"),
        (adam, {"eps": -1e-8}, "eps=-1e-08"),
        (adam, {"betas": (0.5, 1.0)}, "betas"),
        (adam, {"betas": (-0.1, 0.9)}, "betas"),
        (rmsprop, {"lr": -1.0}, "lr=-1.0"),
        (adam, {"lr": float("nan")}, "lr=nan"),
        (rmsprop, {"lr": float("inf")}, "lr=inf"),
        (rmsprop, {"eps": 0.0}, "eps=0.0"),
        (rmsprop, {"alpha": 1.0}, "alpha=1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    make: Callable[..., torch.optim.Optimizer], bad: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        make([nn.Parameter(torch.zeros(1))], **bad)
    assert "\n" not in str(error.value)
