from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cifargan.errors import UserError
from cifargan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from cifargan.models.heads import LinearHead
from cifargan.models.layers import LabelMap

SMALL_G = partial(DCGANGenerator, num_classes=10, image_size=32, latent_dim=6, base_channels=8)
SMALL_D = partial(DCGANDiscriminator, num_classes=10, image_size=32, head=LinearHead, base_channels=8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def assert_gradient_everywhere(network: nn.Module, output: Tensor) -> None:
    weights = torch.linspace(-1, 2, output.numel()).view_as(output)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad((output * weights).sum(), parameters, allow_unused=True)
    reached = [gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients]
    assert [name for name, arrived in zip(names, reached, strict=True) if not arrived] == []


@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("conditional", [False, True])
def test_generator_maps_latents_to_images_in_range(image_size: int, conditional: bool) -> None:
    generator = SMALL_G(image_size=image_size, conditional=conditional)
    with torch.no_grad():
        generator.to_image.weight.mul_(1000)  # so that only tanh can keep the range
    images = generator(torch.randn(3, 6), torch.tensor([0, 4, 9]))
    assert images.shape == (3, 3, image_size, image_size)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1
    assert (generator.latent_dim, generator.image_size) == (6, image_size)
    assert generator.num_classes == (10 if conditional else 0)


@pytest.mark.parametrize("image_size", [16, 32, 64])
def test_discriminator_gives_one_logit_per_image(image_size: int) -> None:
    output = SMALL_D(image_size=image_size)(torch.randn(3, 3, image_size, image_size), torch.zeros(3).long())
    assert output.logits.shape == (3,)
    assert output.class_logits is None


def test_parameter_counts_are_those_of_the_classic_64x64_networks() -> None:
    generator = DCGANGenerator(num_classes=10, image_size=64)
    head = partial(LinearHead, bias=False)
    discriminator = DCGANDiscriminator(num_classes=10, image_size=64, head=head)
    kernel = 4 * 4
    body = kernel * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)  # both networks have these four convolutions
    norms = 2 * (512 + 256 + 128)
    assert parameter_count(generator) == kernel * 100 * 512 + body + norms + 2 * 64 == 3_576_704
    assert parameter_count(discriminator) == body + kernel * 512 + norms == 2_765_568


def test_parameter_counts_at_32() -> None:
    kernel = 4 * 4
    body = kernel * (256 * 128 + 128 * 64 + 64 * 3)
    assert parameter_count(DCGANGenerator(num_classes=10, image_size=32)) == kernel * 100 * 256 + body + 2 * 448
    per_class = DCGANGenerator(num_classes=10, image_size=32, conditional=True)
    assert parameter_count(per_class) == kernel * 100 * 256 + body + 10 * 2 * 448
    discriminator = DCGANDiscriminator(num_classes=10, image_size=32, head=LinearHead)
    assert parameter_count(discriminator) == body + 2 * (128 + 256) + (256 * kernel + 1)


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


def test_unconditional_generator_ignores_labels() -> None:
    generator, z = SMALL_G(), torch.randn(4, 6)
    zeros, nines = torch.zeros(4).long(), torch.full((4,), 9)
    torch.testing.assert_close(generator(z, zeros), generator(z, nines), rtol=0, atol=0)


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


def test_label_map_joins_the_image_as_one_channel() -> None:
    discriminator = SMALL_D(label_map=True, batch_norm=False)
    seen: list[Tensor] = []
    discriminator.get_submodule("body.0").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 3, 32, 32).expand(2, 3, 32, 32)
    logits = discriminator(x, torch.tensor([0, 1])).logits
    assert isinstance(discriminator.label_map, LabelMap)
    assert seen[0].shape == (2, 4, 32, 32)
    torch.testing.assert_close(seen[0][:, :3], x)
    assert logits[0] != logits[1]
    without = SMALL_D(batch_norm=False)(x, torch.tensor([0, 1])).logits
    torch.testing.assert_close(without[0], without[1])


def test_logits_are_linear_in_the_head_so_no_sigmoid() -> None:
    discriminator, x, y = SMALL_D(), torch.randn(4, 3, 32, 32), torch.zeros(4).long()
    before = discriminator(x, y).logits
    with torch.no_grad():
        discriminator.get_parameter("head.linear.weight").mul_(-1e4)
    after = discriminator(x, y).logits
    torch.testing.assert_close(after, -1e4 * before, rtol=1e-4, atol=1e-2)
    assert after.abs().max() > 1
    assert torch.cat([before, after]).min() < 0


def test_only_batch_norm_forbids_a_joint_pass() -> None:
    assert not SMALL_D().joint_pass
    assert SMALL_D(batch_norm=False).joint_pass


def test_without_batch_norm_convolutions_have_biases() -> None:
    for network, convolutions in [(SMALL_G(batch_norm=False), 4), (SMALL_D(batch_norm=False), 3)]:
        layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
        assert len(layers) == convolutions
        assert all(layer.bias is not None for layer in layers)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_gradient_reaches_every_parameter(conditional: bool, spectral_norm: bool) -> None:
    y = torch.arange(10)
    generator = SMALL_G(conditional=conditional, spectral_norm=spectral_norm)
    assert_gradient_everywhere(generator, generator(torch.randn(10, 6), y))
    discriminator = SMALL_D(label_map=conditional, spectral_norm=spectral_norm)
    assert_gradient_everywhere(discriminator, discriminator(torch.randn(10, 3, 32, 32), y).logits)


def test_spectral_norm_covers_every_layer_with_a_matrix() -> None:
    for network, count in [(SMALL_G(spectral_norm=True), 4), (SMALL_D(spectral_norm=True, label_map=True), 5)]:
        kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
        layers = [module for module in network.modules() if isinstance(module, kinds)]
        assert len(layers) == count
        for layer in layers:
            out_dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            largest = torch.linalg.matrix_norm(layer.weight.transpose(0, out_dim).flatten(1), ord=2)
            assert largest.item() == pytest.approx(1, rel=0.1)  # as far as the first power iterations get
        assert not any(parametrize.is_parametrized(m) for m in network.modules() if isinstance(m, nn.Embedding))


def test_dropout_acts_on_the_features_in_training_only() -> None:
    discriminator = SMALL_D(dropout=0.5, batch_norm=False)
    seen: list[Tensor] = []
    discriminator.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, y = torch.randn(4, 3, 32, 32), torch.zeros(4).long()
    discriminator(x, y)
    discriminator.eval()(x, y)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (seen[1] == 0).float().mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("image_size", [0, 8, 30, 31, 33, 48])
def test_image_sizes_that_are_no_power_of_two_from_16_are_refused(image_size: int) -> None:
    for network in (SMALL_G, SMALL_D):
        with pytest.raises(UserError, match=f"image_size={image_size}: .*power of two"):
            network(image_size=image_size)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="batch_norm=true"):
        SMALL_G(conditional=True, batch_norm=False)
    with pytest.raises(UserError, match="labelled data"):
        SMALL_G(conditional=True, num_classes=0)
    with pytest.raises(UserError, match="labelled data"):
        SMALL_D(label_map=True, num_classes=0)
    with pytest.raises(UserError, match="latent_dim=0"):
        SMALL_G(latent_dim=0)
    for dropout in (-0.1, 1.0):
        with pytest.raises(UserError, match=f"dropout={dropout}"):
            SMALL_D(dropout=dropout)
