"""Counting arithmetic."""

import torch
from torch import nn

from cifargan.benchmark.roofline import Roofline, count_flops, measure

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
