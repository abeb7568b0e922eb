"""Counting arithmetic."""

import torch
from torch import nn

from cifargan.bench.roofline import Roofline, count_flops, count_traffic, measure

CPU = torch.device("cpu")


def test_one_convolution_forward_and_backward() -> None:
    n, inputs, outputs, size, kernel = 2, 3, 5, 8, 3
    layer = nn.Conv2d(inputs, outputs, kernel, padding=1)
    x = torch.randn(n, inputs, size, size)
    forward = 2 * n * outputs * size * size * inputs * kernel * kernel
    assert count_flops(lambda: layer(x)) == forward
    # The gradient of the weight is as much work again; that of the images is not asked for.
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * forward
    x.requires_grad_()
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward


def test_a_roof_for_each_precision() -> None:
    roof = measure(CPU, {"fp32"})
    assert isinstance(roof, Roofline)
    assert roof.flops.keys() == {"fp32"}
    assert roof.flops["fp32"] > 0
    assert roof.bytes > 0


def test_traffic_is_what_operators_take_and_give() -> None:
    x, y = torch.randn(10, 20), torch.randn(20, 5)
    assert count_traffic(lambda: x @ y) == 4 * (10 * 20 + 20 * 5 + 10 * 5)
    assert count_traffic(lambda: x.view(200).reshape(20, 10).T.detach()) == 0  # a view moves nothing
    assert count_traffic(lambda: torch.empty(100)) == 0
    assert count_traffic(lambda: torch.cat([x, x])) == 4 * 4 * 200
    assert count_traffic(lambda: x.clone().relu_()) == 4 * (2 * 200 + 2 * 200)
