"""Folded convolutions against the plain ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.models.biggan import BigGANDiscriminator, BigGANGenerator
from cifargan.models.heads import ProjectionHead
from cifargan.models.resampling import PooledConv2d, UpsampledConv2d, fold_


def outcome(layer: UpsampledConv2d | PooledConv2d, x: Tensor, *, folded: bool) -> list[Tensor]:
    """The output, and the gradients of a function that weighs every pixel differently."""
    layer.folded = folded
    x = x.clone().requires_grad_()
    y = layer(x)
    weighted = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    return [y, *torch.autograd.grad(weighted, [x, layer.weight, *([] if layer.bias is None else [layer.bias])])]


@pytest.mark.parametrize("layer", [UpsampledConv2d, PooledConv2d])
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 8)])
def test_both_forms_are_one_function_borders_included(
    layer: type[UpsampledConv2d | PooledConv2d], size: tuple[int, int]
) -> None:
    conv = layer(3, 5).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    plain, folded = outcome(conv, x, folded=False), outcome(conv, x, folded=True)
    assert plain[0].shape[2] == (2 * size[0] if layer is UpsampledConv2d else size[0] // 2)
    for a, b in zip(plain, folded, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_the_plain_forms_are_what_the_papers_draw() -> None:
    up, down = UpsampledConv2d(2, 3), PooledConv2d(2, 3)
    x = torch.randn(1, 2, 4, 4)
    enlarged = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(up(x), F.conv2d(enlarged, up.weight, up.bias, padding=1))
    y = F.conv2d(x, down.weight, down.bias, padding=1)
    torch.testing.assert_close(down(x), y.view(1, 3, 2, 2, 2, 2).mean(dim=(3, 5)))


def test_whole_networks_fold_and_unfold() -> None:
    g = BigGANGenerator(num_classes=3, image_size=32, channels=8, latent_dim=8, class_embedding_dim=4).double()
    d = BigGANDiscriminator(num_classes=3, image_size=32, channels=8, head=ProjectionHead).double()
    z, y = torch.randn(4, 8, dtype=torch.float64), torch.arange(4) % 3
    keys = [*g.state_dict(), *d.state_dict()]
    plain = g(z, y)
    logits = d(plain, y).logits
    for network in (g, d):
        fold_(network, up=True, down=True)
    layers = [m for n in (g, d) for m in n.modules() if isinstance(m, UpsampledConv2d | PooledConv2d)]
    assert [layer.folded for layer in layers] == [True] * 5  # three blocks double, two halve
    torch.testing.assert_close(g(z, y), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(d(plain, y).logits, logits, rtol=0, atol=1e-12)
    assert [*g.state_dict(), *d.state_dict()] == keys
    for network in (g, d):
        fold_(network, up=True, down=False)
    assert [layer.folded for layer in layers] == [True] * 3 + [False] * 2


def test_folding_leaves_other_layers_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ConvTranspose2d(3, 3, 4))
    fold_(network, up=True, down=True)
    assert not any(hasattr(module, "folded") for module in network.modules())
