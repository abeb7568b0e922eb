"""The dense family against plain stacks of layers; what all networks keep is in test_networks.py."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from cifargan.models.dense import DenseDiscriminator, DenseGenerator
from cifargan.models.heads import LinearHead
from cifargan.models.layers import LabelMap, SelfAttention

InputsOf = Callable[[nn.Module], list[Tensor]]
SMALL_G = partial(DenseGenerator, num_classes=10, image_size=32, latent_dim=6, stem_channels=16, channels=8)
SMALL_D = partial(DenseDiscriminator, num_classes=10, image_size=32, head=LinearHead, channels=[8, 16, 16, 8])
ATTENTIVE_G = partial(SMALL_G, attention=[16], label_map_size=8, spectral_norm=True)


def attention_of(network: nn.Module) -> SelfAttention:
    (attention,) = (module for module in network.modules() if isinstance(module, SelfAttention))
    return attention


@pytest.mark.parametrize(("activation", "module"), [("relu", nn.ReLU()), ("leaky_relu", nn.LeakyReLU(0.2))])
def test_generator_equals_a_plain_stack(activation: Literal["relu", "leaky_relu"], module: nn.Module) -> None:
    generator = SMALL_G(activation=activation)
    plain = nn.Sequential(
        nn.Linear(6, 256),
        module,
        nn.Unflatten(1, (16, 4, 4)),
        nn.ConvTranspose2d(16, 8, 4, 2, 1),
        module,
        nn.ConvTranspose2d(8, 8, 4, 2, 1),
        module,
        nn.ConvTranspose2d(8, 8, 4, 2, 1),
        module,
        nn.Conv2d(8, 3, 3, padding=1),
        nn.Tanh(),
    )
    plain.load_state_dict(dict(zip(plain.state_dict(), generator.state_dict().values(), strict=True)))
    z = torch.randn(5, 6)
    torch.testing.assert_close(generator(z, torch.zeros(5).long()), plain(z))


def test_discriminator_equals_a_plain_stack() -> None:
    discriminator = SMALL_D(dropout=0.0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 8, 3, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(128, 1),
    )
    plain.load_state_dict(dict(zip(plain.state_dict(), discriminator.state_dict().values(), strict=True)))
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(discriminator(x, torch.zeros(5).long()).logits, plain(x).squeeze(1))


def test_weights_start_glorot_uniform_and_biases_at_zero() -> None:
    discriminator = DenseDiscriminator(num_classes=10, image_size=32, head=LinearHead)
    weight = discriminator.get_parameter("body.2.weight")
    bound = (6 / (64 * 9 + 128 * 9)) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    for network in (discriminator, DenseGenerator(num_classes=10, image_size=32)):
        biases = [parameter for name, parameter in network.named_parameters() if name.endswith("bias")]
        assert len(biases) == 5
        assert all((bias == 0).all() for bias in biases)


def test_attention_at_16_sees_128_channels_starts_as_the_identity_and_acts_once_gamma_moves(
    inputs_of: InputsOf,
) -> None:
    y = torch.zeros(2).long()
    generator = DenseGenerator(num_classes=10, image_size=32, attention=[16])
    discriminator = DenseDiscriminator(num_classes=10, image_size=32, head=LinearHead, attention=[16]).eval()
    for network, inputs in [(generator, torch.randn(2, 100)), (discriminator, torch.randn(2, 3, 32, 32))]:
        attention = attention_of(network)
        seen = inputs_of(attention)
        before = network(inputs, y)
        assert seen[0].shape == (2, 128, 16, 16)
        assert attention.gamma.item() == 0
        torch.testing.assert_close(attention(seen[0]), seen[0], rtol=0, atol=0)
        nn.init.ones_(attention.gamma)
        after = network(inputs, y)
        change = after - before if network is generator else after.logits - before.logits
        assert change.abs().max() > 1e-3


@pytest.mark.parametrize(("size", "width"), [(4, 16), (8, 8), (32, 8)])
def test_generator_label_map_is_one_channel_beside_the_features_of_its_size(
    size: int, width: int, inputs_of: InputsOf
) -> None:
    generator = SMALL_G(label_map_size=size, attention=[size])
    (label_map,) = (module for module in generator.modules() if isinstance(module, LabelMap))
    features = inputs_of(label_map)
    convolutions = [m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d) or m is generator.to_image]
    inputs = [inputs_of(convolution) for convolution in convolutions]
    generator(torch.randn(3, 6), torch.tensor([3, 3, 7]))
    (joined,) = [seen for (seen,) in inputs if seen.shape[1] == width + 1]
    assert joined.shape == (3, width + 1, size, size)
    torch.testing.assert_close(joined[:, :width], features[0], rtol=0, atol=0)
    label_maps = joined[:, width]
    torch.testing.assert_close(label_maps[0], label_maps[1])  # of the label, whatever the latent
    assert (label_maps[0] - label_maps[2]).abs().max() > 0.01


def contrast(network: DenseGenerator) -> float:
    """Mean deviation of a pixel over latents, in [-1, 1]."""
    with torch.no_grad():
        return float(network(torch.randn(64, 6), torch.zeros(64, dtype=torch.long)).std(dim=0).mean())


def test_batch_norm_keeps_the_latent_in_the_image_under_spectral_norm() -> None:
    assert contrast(ATTENTIVE_G()) < 0.02
    assert 0.2 < contrast(ATTENTIVE_G(batch_norm=True)) < 0.6


def test_batch_norm_stands_before_every_activation_in_place_of_a_bias(inputs_of: InputsOf) -> None:
    network = ATTENTIVE_G(batch_norm=True)
    nn.init.ones_(attention_of(network).gamma)
    # One activation, shared by the four sizes.
    (inputs,) = [inputs_of(module) for module in network.modules() if isinstance(module, nn.LeakyReLU)]
    network(torch.randn(16, 6), torch.arange(16) % 10)
    assert [tuple(x.shape[1:]) for x in inputs] == [(16, 4, 4), (8, 8, 8), (8, 16, 16), (8, 32, 32)]
    for x in inputs:
        torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(x.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.var(dim=(0, 2, 3), correction=0), torch.ones(x.shape[1]), atol=5e-3, rtol=0)
    assert [name for name, _ in network.named_parameters() if name.endswith("0.bias")] == []
