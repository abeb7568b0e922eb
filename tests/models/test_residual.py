"""BigGAN's residual blocks against their formulas, and the traps that re-implementations fall into."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.models.layers import SelfAttention
from cifargan.models.residual import DiscriminatorBlock, GeneratorBlock, attention_layers


def convolve(layer: nn.Module, x: Tensor, padding: int) -> Tensor:
    conv = cast(nn.Conv2d, layer)
    return F.conv2d(x, conv.weight, conv.bias, padding=padding)


def pool(x: Tensor) -> Tensor:
    n, c, height, width = x.shape
    return x.reshape(n, c, height // 2, 2, width // 2, 2).mean(dim=(3, 5))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("width", [3, 4])
def test_discriminator_block(width: int, downsample: bool, normalised: bool) -> None:
    """Without preactivation where the width changes, as in a first block; with it elsewhere."""
    preactivation = width == 4
    block = DiscriminatorBlock(width, 4, preactivation=preactivation, downsample=downsample, spectral_norm=normalised)
    x = torch.randn(2, width, 8, 8)
    before = x.clone()
    h = convolve(block.conv1, x.clamp(min=0) if preactivation else x, 1)
    h = convolve(block.conv2, h.clamp(min=0), 1)
    identity = preactivation and not downsample
    assert bool(list(block.shortcut.parameters())) != identity
    direct = x if identity else convolve(block.shortcut, x, 0)  # of the raw input
    torch.testing.assert_close(block(x), pool(h + direct) if downsample else h + direct)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


class Shift(nn.Module):
    """Stands in for a conditional norm: adds the condition, and its own scale tells two of them apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x * self.scale + condition[:, :, None, None]


@pytest.mark.parametrize("normalised", [False, True])
def test_generator_block(normalised: bool) -> None:
    block = GeneratorBlock(4, Shift, spectral_norm=normalised)
    x, condition = torch.randn(2, 4, 3, 3), torch.randn(2, 4)

    def up(t: Tensor) -> Tensor:
        return t.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    h = convolve(block.conv1, up(block.norm1(x, condition).clamp(min=0)), 1)
    h = convolve(block.conv2, block.norm2(h, condition).clamp(min=0), 1)
    torch.testing.assert_close(block(x, condition), h + convolve(block.shortcut, up(x), 0))


def test_attention_follows_the_first_block_of_a_listed_size() -> None:
    layers = attention_layers(8, [16, 8, 8, 8], [8], spectral_norm=False)
    assert [type(layer) for layer in layers] == [nn.Identity, SelfAttention, nn.Identity, nn.Identity]
    assert not list(attention_layers(8, [16, 8], [], spectral_norm=False).parameters())


@pytest.mark.parametrize("attention", [[32], [8, 12], [8, 8]])
def test_attention_sizes_must_be_reached_and_listed_once(attention: list[int]) -> None:
    with pytest.raises(UserError, match=r"sizes out of \[8, 16\]"):
        attention_layers(8, [16, 8, 8], attention, spectral_norm=False)
