"""DCGAN against plain stacks of layers; what all networks keep is in test_networks.py."""

from functools import partial

import pytest
import torch
from torch import nn

from cifargan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from cifargan.models.heads import LinearHead

SMALL_G = partial(DCGANGenerator, num_classes=10, image_size=32, latent_dim=6, base_channels=8)
SMALL_D = partial(DCGANDiscriminator, num_classes=10, image_size=32, head=LinearHead, base_channels=8)


def test_generator_equals_a_plain_stack() -> None:
    generator = SMALL_G(image_size=64)
    plain = nn.Sequential(
        nn.Sequential(nn.ConvTranspose2d(6, 64, 4, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    state = generator.state_dict()
    renamed = {"4.weight": state.pop("to_image.weight")}
    for name, value in state.items():  # layers.I.weight or norms.I.layer.NAME
        kind, depth, *_, leaf = name.split(".")
        renamed[f"{depth}.{['layers', 'norms'].index(kind)}.{leaf}"] = value.clone()
    plain.load_state_dict(renamed)
    z = torch.randn(5, 6)
    torch.testing.assert_close(generator(z, torch.zeros(5).long()), plain(z.view(5, 6, 1, 1)))


def test_discriminator_equals_a_plain_stack_that_closes_with_a_convolution() -> None:
    discriminator = SMALL_D(head=partial(LinearHead, bias=False))
    plain = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)),
        nn.Sequential(nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)),
        nn.Sequential(nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.LeakyReLU(0.2)),
        nn.Conv2d(32, 1, 4, bias=False),
    )
    ours, theirs = list(discriminator.parameters()), list(plain.parameters())
    assert len(ours) == len(theirs)
    with torch.no_grad():
        for a, b in zip(ours, theirs, strict=True):
            b.copy_(a.view_as(b))
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(discriminator(x, torch.zeros(5).long()).logits, plain(x).flatten())


def test_initial_weights_are_normal_with_standard_deviation_002() -> None:
    generator = SMALL_G(base_channels=64)
    weight = generator.get_parameter("layers.1.weight")
    assert weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    gains = generator.get_parameter("norms.0.layer.weight")
    assert gains.mean().item() == pytest.approx(1, abs=0.005)
    assert gains.std().item() == pytest.approx(0.02, rel=0.2)


def test_labels_act_through_the_gains_and_biases_of_their_class_alone() -> None:
    generator = SMALL_G(conditional=True).eval()
    z = torch.randn(1, 6).expand(3, 6)
    y = torch.tensor([2, 3, 4])
    before = generator(z, y)
    torch.testing.assert_close(before[0], before[1])  # every class starts as plain batch norm
    with torch.no_grad():
        generator.get_parameter("norms.0.gain")[3] += torch.randn(32)
        generator.get_parameter("norms.2.bias")[4] += torch.randn(8)
    after = generator(z, y)
    torch.testing.assert_close(after[0], before[0])
    change = (after - before).abs().amax(dim=(1, 2, 3)) / before.abs().max()
    assert change[1] > 0.01
    assert change[2] > 0.01


def test_without_batch_norm_convolutions_have_biases() -> None:
    for network, convolutions in [(SMALL_G(batch_norm=False), 4), (SMALL_D(batch_norm=False), 3)]:
        layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
        assert len(layers) == convolutions
        assert all(layer.bias is not None for layer in layers)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
