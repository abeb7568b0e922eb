from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cifargan.errors import UserError
from cifargan.models.dense import DenseDiscriminator, DenseGenerator
from cifargan.models.heads import LinearHead
from cifargan.models.layers import LabelMap, SelfAttention

SMALL_G = partial(DenseGenerator, num_classes=10, image_size=32, latent_dim=6, stem_channels=16, channels=8)
SMALL_D = partial(DenseDiscriminator, num_classes=10, image_size=32, head=LinearHead, channels=[8, 16, 16, 8])
# The two ends of the family: attention, label maps and spectral norm; and a stack of three strided convolutions.
ATTENTIVE_G = partial(SMALL_G, attention=[16], label_map_size=8, spectral_norm=True)
ATTENTIVE_D = partial(SMALL_D, attention=[16], label_map=True, spectral_norm=True, dropout=0.0)
STRIDED_D = partial(SMALL_D, channels=[8, 8, 8], full_resolution_stem=False, label_map=True, dropout=0.0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def attention_of(network: nn.Module) -> SelfAttention:
    (attention,) = [module for module in network.modules() if isinstance(module, SelfAttention)]
    return attention


def open_attention(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, SelfAttention):
            module.gamma.data.fill_(1)


def label_map_of(network: nn.Module) -> LabelMap:
    (label_map,) = [module for module in network.modules() if isinstance(module, LabelMap)]
    return label_map


def record_inputs(module: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    return seen


def assert_gradient_everywhere(network: nn.Module, output: Tensor) -> None:
    weights = torch.linspace(-1, 2, output.numel()).view_as(output)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad((output * weights).sum(), parameters, allow_unused=True)
    reached = [gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients]
    assert [name for name, arrived in zip(names, reached, strict=True) if not arrived] == []


@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("label_map_size", [None, 4, 8, "image"])
def test_generator_maps_latents_to_images_in_range(image_size: int, label_map_size: int | str | None) -> None:
    size = image_size if isinstance(label_map_size, str) else label_map_size
    generator = SMALL_G(image_size=image_size, label_map_size=size, attention=[8])
    with torch.no_grad():
        generator.to_image.weight.mul_(1000)  # so that only tanh can keep the range
    images = generator(torch.randn(3, 6), torch.tensor([0, 4, 9]))
    assert images.shape == (3, 3, image_size, image_size)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1
    assert (generator.latent_dim, generator.image_size) == (6, image_size)
    assert generator.num_classes == (0 if size is None else 10)


@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("network", [SMALL_D, ATTENTIVE_D, STRIDED_D])
def test_discriminator_gives_one_logit_per_image(image_size: int, network: partial[DenseDiscriminator]) -> None:
    discriminator = network(image_size=image_size, attention=[8])
    features = record_inputs(discriminator.head)
    output = discriminator(torch.randn(3, 3, image_size, image_size), torch.tensor([0, 4, 9]))
    assert output.logits.shape == (3,)
    assert output.class_logits is None
    assert features[0].shape == (3, 8 * (image_size // 8) ** 2)  # three halvings, 8 channels


def test_parameter_counts_of_the_defaults() -> None:
    generator = DenseGenerator(num_classes=10, image_size=32)
    linear = 100 * 4096 + 4096
    assert parameter_count(generator) == (
        linear + (256 * 128 * 16 + 128) + 2 * (128 * 128 * 16 + 128) + (128 * 3 * 9 + 3)
    )
    discriminator = DenseDiscriminator(num_classes=10, image_size=32, head=LinearHead)
    convolutions = (3 * 64 + 64 * 128 + 128 * 128 + 128 * 256) * 9 + 64 + 128 + 128 + 256
    assert parameter_count(discriminator) == convolutions + 4 * 4 * 256 + 1


def test_parameter_counts_with_label_maps() -> None:
    generator = DenseGenerator(
        num_classes=10, image_size=32, stem_channels=128, label_map_size=4, label_embedding_dim=10, activation="relu"
    )
    label_map = 10 * 10 + (10 * 16 + 16)
    transposed = (129 + 128 + 128) * 128 * 16 + 3 * 128
    assert parameter_count(generator) == (100 * 2048 + 2048) + label_map + transposed + (128 * 3 * 9 + 3)
    discriminator = DenseDiscriminator(
        num_classes=10,
        image_size=32,
        head=LinearHead,
        channels=[128, 128, 128],
        full_resolution_stem=False,
        label_map=True,
        label_embedding_dim=10,
    )
    convolutions = (4 + 128 + 128) * 128 * 9 + 3 * 128
    assert parameter_count(discriminator) == 10 * 10 + (10 * 1024 + 1024) + convolutions + 4 * 4 * 128 + 1


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


def test_default_attention_at_16_sees_128_channels_and_starts_as_the_identity() -> None:
    y = torch.zeros(2).long()
    generator = DenseGenerator(num_classes=10, image_size=32, attention=[16])
    discriminator = DenseDiscriminator(num_classes=10, image_size=32, head=LinearHead, attention=[16]).eval()
    for network, inputs in [(generator, torch.randn(2, 100)), (discriminator, torch.randn(2, 3, 32, 32))]:
        attention = attention_of(network)
        seen = record_inputs(attention)
        network(inputs, y)
        assert seen[0].shape == (2, 128, 16, 16)
        assert attention.gamma.item() == 0
        torch.testing.assert_close(attention(seen[0]), seen[0], rtol=0, atol=0)


def test_attention_acts_once_gamma_moves() -> None:
    z, x, y = torch.randn(2, 6), torch.randn(2, 3, 32, 32), torch.zeros(2).long()
    generator, discriminator = ATTENTIVE_G(), ATTENTIVE_D()
    images, logits = generator(z, y), discriminator(x, y).logits
    for network in (generator, discriminator):
        open_attention(network)
    assert (generator(z, y) - images).abs().max() > 1e-3
    assert (discriminator(x, y).logits - logits).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "width"), [(4, 16), (8, 8), (32, 8)])
def test_generator_label_map_is_one_channel_beside_the_features_of_its_size(size: int, width: int) -> None:
    generator = SMALL_G(label_map_size=size, attention=[size])
    features = record_inputs(label_map_of(generator))
    convolutions = [m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d) or m is generator.to_image]
    inputs = [record_inputs(convolution) for convolution in convolutions]
    generator(torch.randn(3, 6), torch.tensor([3, 3, 7]))
    (joined,) = [seen for (seen,) in inputs if seen.shape[1] == width + 1]
    assert joined.shape == (3, width + 1, size, size)
    torch.testing.assert_close(joined[:, :width], features[0], rtol=0, atol=0)
    label_maps = joined[:, width]
    torch.testing.assert_close(label_maps[0], label_maps[1])  # of the label, whatever the latent
    assert (label_maps[0] - label_maps[2]).abs().max() > 0.01


def test_discriminator_label_map_is_one_channel_beside_the_image() -> None:
    discriminator = STRIDED_D()
    joined = record_inputs(discriminator.get_submodule("body.0"))
    x = torch.randn(3, 3, 32, 32)
    discriminator(x, torch.tensor([3, 3, 7]))
    assert joined[0].shape == (3, 4, 32, 32)
    torch.testing.assert_close(joined[0][:, :3], x, rtol=0, atol=0)
    torch.testing.assert_close(joined[0][0, 3], joined[0][1, 3])
    assert (joined[0][0, 3] - joined[0][2, 3]).abs().max() > 0.01


def test_labels_matter_to_conditional_networks_alone() -> None:
    zeros, nines = torch.zeros(4).long(), torch.full((4,), 9)
    z, x = torch.randn(4, 6), torch.randn(4, 3, 32, 32)
    generator, discriminator = SMALL_G(), SMALL_D(dropout=0.0)
    torch.testing.assert_close(generator(z, zeros), generator(z, nines), rtol=0, atol=0)
    torch.testing.assert_close(discriminator(x, zeros).logits, discriminator(x, nines).logits, rtol=0, atol=0)
    generator, discriminator = ATTENTIVE_G(), ATTENTIVE_D()
    assert (generator(z, zeros) - generator(z, nines)).abs().max() > 1e-3
    assert (discriminator(x, zeros).logits - discriminator(x, nines).logits).abs().min() > 1e-4


@pytest.mark.parametrize("network", [SMALL_D, ATTENTIVE_D, STRIDED_D])
def test_logits_are_linear_in_the_head_so_no_sigmoid(network: partial[DenseDiscriminator]) -> None:
    discriminator, x, y = network(spectral_norm=False).eval(), torch.randn(4, 3, 32, 32), torch.zeros(4).long()
    before = discriminator(x, y).logits
    with torch.no_grad():
        discriminator.get_parameter("head.linear.weight").mul_(-1e4)
    after = discriminator(x, y).logits
    torch.testing.assert_close(after, -1e4 * before, rtol=1e-4, atol=1e-2)
    assert after.abs().max() > 1
    assert torch.cat([before, after]).min() < 0


@pytest.mark.parametrize("network", [SMALL_D, ATTENTIVE_D, STRIDED_D])
def test_real_and_fake_may_share_a_pass(network: partial[DenseDiscriminator]) -> None:
    discriminator = network().eval()
    assert discriminator.joint_pass
    real, fake, y = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    joint = discriminator(torch.cat([real, fake]), torch.cat([y, y])).logits
    torch.testing.assert_close(joint, torch.cat([discriminator(real, y).logits, discriminator(fake, y).logits]))


def test_dropout_acts_on_the_features_in_training_only() -> None:
    discriminator = SMALL_D(channels=[8, 8, 8, 64])
    features = record_inputs(discriminator.head)
    x, y = torch.randn(4, 3, 32, 32), torch.zeros(4).long()
    discriminator(x, y)
    discriminator.eval()(x, y)
    assert (features[0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert (features[1] == 0).float().mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("network", [SMALL_G, partial(SMALL_G, activation="relu"), ATTENTIVE_G])
def test_gradient_reaches_every_parameter_of_the_generator(network: partial[DenseGenerator]) -> None:
    generator = network()
    open_attention(generator)
    assert_gradient_everywhere(generator, generator(torch.randn(10, 6), torch.arange(10)))


@pytest.mark.parametrize("network", [SMALL_D, ATTENTIVE_D, STRIDED_D])
def test_gradient_reaches_every_parameter_of_the_discriminator(network: partial[DenseDiscriminator]) -> None:
    discriminator = network()
    open_attention(discriminator)
    assert_gradient_everywhere(discriminator, discriminator(torch.randn(10, 3, 32, 32), torch.arange(10)).logits)


def contrast(network: DenseGenerator) -> float:
    """Mean deviation of a pixel over latents, in [-1, 1]."""
    with torch.no_grad():
        return float(network(torch.randn(64, 6), torch.zeros(64, dtype=torch.long)).std(dim=0).mean())


def test_batch_norm_keeps_the_latent_in_the_image_under_spectral_norm() -> None:
    assert contrast(ATTENTIVE_G()) < 0.02
    assert 0.2 < contrast(ATTENTIVE_G(batch_norm=True)) < 0.6


def test_batch_norm_stands_before_every_activation_in_place_of_a_bias() -> None:
    network = ATTENTIVE_G(batch_norm=True)
    open_attention(network)
    seen = [record_inputs(module) for module in network.modules() if isinstance(module, nn.LeakyReLU)]
    assert_gradient_everywhere(network, network(torch.randn(16, 6), torch.arange(16) % 10))
    # One activation, shared by the four sizes.
    (inputs,) = seen
    assert [tuple(x.shape[1:]) for x in inputs] == [(16, 4, 4), (8, 8, 8), (8, 16, 16), (8, 32, 32)]
    for x in inputs:
        torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(x.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.var(dim=(0, 2, 3), correction=0), torch.ones(x.shape[1]), atol=5e-3, rtol=0)
    assert [name for name, _ in network.named_parameters() if name.endswith("0.bias")] == []


def test_spectral_norm_covers_every_layer_with_a_matrix_but_no_embedding() -> None:
    # G: linear, 3 transposed, 4 of attention, label map, to image. D: 4 convolutions, 4 of attention, label map, head.
    for network in (ATTENTIVE_G(), ATTENTIVE_D()):
        kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
        layers = [module for module in network.modules() if isinstance(module, kinds)]
        assert len(layers) == 10
        for layer in layers:
            out_dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            largest = torch.linalg.matrix_norm(layer.weight.transpose(0, out_dim).flatten(1), ord=2)
            assert largest.item() == pytest.approx(1, rel=0.1)  # as far as the first power iterations get
        assert not parametrize.is_parametrized(label_map_of(network).embed)


@pytest.mark.parametrize("image_size", [0, 8, 30, 31, 33, 48])
def test_image_sizes_that_are_no_power_of_two_from_16_are_refused(image_size: int) -> None:
    for network in (SMALL_G, SMALL_D):
        with pytest.raises(UserError, match=f"image_size={image_size}: .*power of two"):
            network(image_size=image_size)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match=r"attention: .* size 12 .* 4, 8, 16, 32"):
        SMALL_G(attention=[8, 12])
    with pytest.raises(UserError, match=r"label_map_size: .* size 64 .* 4, 8, 16, 32"):
        SMALL_G(label_map_size=64)
    with pytest.raises(UserError, match=r"attention: .* size 32 .* 4, 8, 16$"):
        STRIDED_D(attention=[32])
    with pytest.raises(UserError, match="labelled data"):
        SMALL_G(label_map_size=8, num_classes=0)
    with pytest.raises(UserError, match="labelled data"):
        SMALL_D(label_map=True, num_classes=0)
    with pytest.raises(UserError, match="below 2x2"):
        SMALL_D(channels=[8] * 6)
    for channels in ([], [8, 0]):
        with pytest.raises(UserError, match="list the width"):
            SMALL_D(channels=channels)
    with pytest.raises(UserError, match="stem_channels=0"):
        SMALL_G(stem_channels=0)
    with pytest.raises(UserError, match=r"dropout=1\.5"):
        SMALL_D(dropout=1.5)
