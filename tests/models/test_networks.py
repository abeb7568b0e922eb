"""What every network keeps, whatever its architecture: shapes, ranges, gradients, labels, spectral norm, sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cifargan.errors import UserError
from cifargan.models.biggan import BigGANDiscriminator, BigGANGenerator
from cifargan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from cifargan.models.dense import DenseDiscriminator, DenseGenerator
from cifargan.models.heads import LinearHead, ProjectionHead
from cifargan.models.interface import Discriminator, Generator
from cifargan.models.layers import SelfAttention
from cifargan.models.spectral import output_dim, power_iteration_, trained_weight

SHAPE: dict[str, Any] = {"num_classes": 10, "image_size": 16}
DCGAN_G = partial(DCGANGenerator, **SHAPE, latent_dim=6, base_channels=8)
DCGAN_D = partial(DCGANDiscriminator, **SHAPE, head=LinearHead, base_channels=8)
DENSE_G = partial(DenseGenerator, **SHAPE, latent_dim=6, stem_channels=16, channels=8)
DENSE_D = partial(DenseDiscriminator, **SHAPE, head=LinearHead, channels=[8, 16, 16, 8], dropout=0.0)
BIGGAN_G = partial(BigGANGenerator, **SHAPE, latent_dim=60, channels=8, class_embedding_dim=4, attention=[8])
BIGGAN_D = partial(BigGANDiscriminator, **SHAPE, head=ProjectionHead, channels=8, attention=[8])

GENERATORS: dict[str, Callable[..., Generator]] = {
    "dcgan": DCGAN_G,
    "cdcgan": partial(DCGAN_G, conditional=True),
    "dense": partial(DENSE_G, attention=[8]),
    "dense relu": partial(DENSE_G, activation="relu"),
    "dense map 4": partial(DENSE_G, attention=[8], label_map_size=4),
    "dense map 8": partial(DENSE_G, attention=[16], label_map_size=8),
    "dense map image": lambda image_size=16, **rest: DENSE_G(image_size=image_size, label_map_size=image_size, **rest),
    "dense batch norm": partial(DENSE_G, attention=[8], label_map_size=8, batch_norm=True),
    "biggan": BIGGAN_G,
    "biggan flat": partial(BIGGAN_G, hierarchical=False),
}
DISCRIMINATORS: dict[str, Callable[..., Discriminator]] = {
    "dcgan": DCGAN_D,
    "dcgan map": partial(DCGAN_D, label_map=True),
    "dense": DENSE_D,
    "dense attention": partial(DENSE_D, attention=[8], label_map=True),
    "dense strided": partial(DENSE_D, channels=[8] * 3, full_resolution_stem=False, label_map=True, attention=[8]),
    "biggan": BIGGAN_D,
}
IGNORE_LABELS = {"dcgan", "dense", "dense relu"}


def open_attention(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, SelfAttention):
            nn.init.ones_(module.gamma)


def assert_gradient_everywhere(network: nn.Module, output: Tensor) -> None:
    weights = torch.linspace(-1, 2, output.numel()).view_as(output)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad((output * weights).sum(), parameters, allow_unused=True)
    reached = [gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients]
    assert [name for name, arrived in zip(names, reached, strict=True) if not arrived] == []


@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_maps_latents_to_images_in_range(name: str, image_size: int) -> None:
    generator = GENERATORS[name](image_size=image_size)
    *_, last = (module for module in generator.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d))
    with torch.no_grad():
        trained_weight(last).mul_(1000)  # so that only tanh can keep the range
    images = generator(torch.randn(3, generator.latent_dim), torch.tensor([0, 4, 9]))
    assert images.shape == (3, 3, image_size, image_size)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1
    assert (generator.latent_dim, generator.image_size) == (60 if "biggan" in name else 6, image_size)
    assert generator.num_classes == (0 if name in IGNORE_LABELS else 10)


@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_gives_one_logit_per_image(
    name: str, image_size: int, inputs_of: Callable[[nn.Module], list[Tensor]]
) -> None:
    discriminator = DISCRIMINATORS[name](image_size=image_size)
    features = inputs_of(discriminator.get_submodule("head"))
    output = discriminator(torch.randn(3, 3, image_size, image_size), torch.tensor([0, 4, 9]))
    assert output.logits.shape == (3,)
    assert output.class_logits is None
    if name.startswith("dense"):
        assert features[0].shape == (3, 8 * (image_size // 8) ** 2)  # three halvings, 8 channels


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("name", [name for name in GENERATORS if "biggan" not in name])
def test_gradient_reaches_every_parameter_of_a_generator(name: str, spectral_norm: bool) -> None:
    generator = GENERATORS[name](spectral_norm=spectral_norm)
    open_attention(generator)
    assert_gradient_everywhere(generator, generator(torch.randn(10, generator.latent_dim), torch.arange(10)))


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_gradient_reaches_every_parameter_of_a_discriminator(name: str, spectral_norm: bool) -> None:
    discriminator = DISCRIMINATORS[name](spectral_norm=spectral_norm)
    open_attention(discriminator)
    assert_gradient_everywhere(discriminator, discriminator(torch.randn(10, 3, 16, 16), torch.arange(10)).logits)


@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "cdcgan"])  # its classes start equal
def test_labels_matter_to_conditional_generators_alone(name: str) -> None:
    generator = GENERATORS[name]().eval()
    z = torch.randn(4, generator.latent_dim)
    zeros, nines = (generator(z, torch.full((4,), label)) for label in (0, 9))
    if name in IGNORE_LABELS:
        torch.testing.assert_close(zeros, nines, rtol=0, atol=0)
    else:
        assert (zeros - nines).abs().max() > 1e-3


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_labels_matter_to_conditional_discriminators_alone(name: str) -> None:
    discriminator = DISCRIMINATORS[name]()
    x = torch.randn(4, 3, 16, 16)
    zeros, nines = (discriminator(x, torch.full((4,), label)).logits for label in (0, 9))
    if name in IGNORE_LABELS:
        torch.testing.assert_close(zeros, nines, rtol=0, atol=0)
    else:
        assert (zeros - nines).abs().min() > (1e-6 if "dcgan" in name else 1e-4)  # DCGAN starts with small weights


@pytest.mark.parametrize("name", ["dcgan map", "dense attention", "dense strided"])
def test_a_label_map_is_one_channel_beside_the_image(name: str, inputs_of: Callable[[nn.Module], list[Tensor]]) -> None:
    discriminator = DISCRIMINATORS[name]()
    inputs = inputs_of(discriminator.get_submodule("body.0"))
    x = torch.randn(3, 3, 16, 16)
    discriminator(x, torch.tensor([3, 3, 7]))
    (joined,) = inputs
    assert joined.shape == (3, 4, 16, 16)
    torch.testing.assert_close(joined[:, :3], x, rtol=0, atol=0)
    torch.testing.assert_close(joined[0, 3], joined[1, 3])
    assert (joined[0, 3] - joined[2, 3]).abs().max() > 0.01


@pytest.mark.parametrize("name", [name for name in DISCRIMINATORS if name != "biggan"])  # its head has two weights
def test_logits_are_linear_in_the_head_so_no_sigmoid(name: str) -> None:
    discriminator, x, y = DISCRIMINATORS[name](), torch.randn(4, 3, 16, 16), torch.zeros(4).long()
    before = discriminator(x, y).logits
    with torch.no_grad():
        discriminator.get_parameter("head.linear.weight").mul_(-1e4)
    after = discriminator(x, y).logits
    torch.testing.assert_close(after, -1e4 * before, rtol=1e-4, atol=1e-2)
    assert after.abs().max() > 1
    assert torch.cat([before, after]).min() < 0


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_real_and_fake_share_a_pass_unless_there_is_batch_norm(name: str) -> None:
    discriminator = DISCRIMINATORS[name]()
    if name.startswith("dcgan"):
        assert not discriminator.joint_pass
        discriminator = DISCRIMINATORS[name](batch_norm=False)
    assert discriminator.joint_pass
    real, fake, y = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    joint = discriminator(torch.cat([real, fake]), torch.cat([y, y])).logits
    torch.testing.assert_close(joint, torch.cat([discriminator(real, y).logits, discriminator(fake, y).logits]))


@pytest.mark.parametrize(
    ("make", "p"), [(partial(DCGAN_D, dropout=0.5, batch_norm=False), 0.5), (partial(DENSE_D, dropout=0.4), 0.4)]
)
def test_dropout_acts_on_the_features_in_training_only(
    make: Callable[..., Discriminator], p: float, inputs_of: Callable[[nn.Module], list[Tensor]]
) -> None:
    discriminator = make(image_size=32)
    features = inputs_of(discriminator.get_submodule("head"))
    x, y = torch.randn(16, 3, 32, 32), torch.zeros(16).long()
    discriminator(x, y)
    discriminator.eval()(x, y)
    assert (features[0] == 0).float().mean().item() == pytest.approx(p, abs=0.03)
    assert (features[1] == 0).float().mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("make", "count", "bare"),
    [
        (DCGAN_G, 3, set()),
        (partial(DCGAN_D, label_map=True), 4, {"label_map.embed"}),
        # Linear, two transposed, four of attention, label map, to image.
        (partial(DENSE_G, attention=[16], label_map_size=8), 9, {"label_maps.1.embed"}),
        # Four convolutions, four of attention, label map, head.
        (partial(DENSE_D, attention=[8], label_map=True), 10, {"label_map.embed"}),
        # Stem, two blocks of three convolutions and four linear layers, four of attention, to image.
        (BIGGAN_G, 20, {"embed"}),
        # A block of three convolutions, two of two, four of attention, two of the head.
        (BIGGAN_D, 13, set()),
    ],
)
def test_spectral_norm_covers_every_layer_with_a_matrix(
    make: Callable[..., nn.Module], count: int, bare: set[str]
) -> None:
    network = make(spectral_norm=True)
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding
    layers = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    assert {name for name, layer in layers.items() if not parametrize.is_parametrized(layer)} == bare
    assert len(layers.keys() - bare) == count
    for _ in range(100):
        power_iteration_(network)
    for name in layers.keys() - bare:
        matrix = layers[name].weight.transpose(0, output_dim(layers[name])).flatten(1)
        assert torch.linalg.matrix_norm(matrix, ord=2).item() == pytest.approx(1, rel=0.01), name
    assert not any(parametrize.is_parametrized(module) for module in make(spectral_norm=False).modules())


DCGAN_32 = 16 * (256 * 128 + 128 * 64 + 64 * 3)  # both networks have these convolutions of 4x4
DCGAN_64 = DCGAN_32 + 16 * 512 * 256
LABEL_MAP = {"label_map_size": 4, "label_embedding_dim": 10, "stem_channels": 128, "activation": "relu"}
STRIDED = {"channels": [128] * 3, "full_resolution_stem": False, "label_map": True, "label_embedding_dim": 10}
ORIGINAL = {"latent_dim": 128, "channels": 256, "attention": [], "conditioning": "per_class", "hierarchical": False}
COUNTS: list[tuple[type[nn.Module], dict[str, Any], int]] = [
    (DCGANGenerator, {"image_size": 64}, 1600 * 512 + DCGAN_64 + 2 * (512 + 256 + 128 + 64)),
    (DCGANDiscriminator, {"image_size": 64, "head": partial(LinearHead, bias=False)}, 2_765_568),
    (DCGANGenerator, {}, 1600 * 256 + DCGAN_32 + 2 * 448),
    (DCGANGenerator, {"conditional": True}, 1600 * 256 + DCGAN_32 + 10 * 2 * 448),
    (DCGANDiscriminator, {}, DCGAN_32 + 2 * (128 + 256) + (256 * 16 + 1)),
    # Linear, transposed convolutions, to image; convolutions and head.
    (DenseGenerator, {}, 101 * 4096 + (256 * 16 + 1) * 128 + 2 * (128 * 16 + 1) * 128 + (128 * 9 + 1) * 3),
    (DenseDiscriminator, {}, 28 * 64 + (64 * 9 + 1) * 128 + (128 * 9 + 1) * (128 + 256) + 4 * 4 * 256 + 1),
    (DenseGenerator, LABEL_MAP, 101 * 2048 + 10 * 10 + 11 * 16 + (385 * 16 + 3) * 128 + (128 * 9 + 1) * 3),
    (DenseDiscriminator, STRIDED, 10 * 10 + 11 * 1024 + (260 * 9 + 3) * 128 + 4 * 4 * 128 + 1),
    # BigGAN's are published: those of the best reference, then those of the original authors.
    (BigGANGenerator, {}, 9_416_196),
    (BigGANDiscriminator, {"head": ProjectionHead}, 2_415_170),
    (BigGANGenerator, ORIGINAL, 4_304_387),
    (BigGANDiscriminator, {"head": ProjectionHead, "channels": 256, "attention": []}, 4_207_361),
]


@pytest.mark.parametrize(("network", "settings", "expected"), COUNTS)
def test_parameter_counts_at_full_width(network: type[nn.Module], settings: dict[str, Any], expected: int) -> None:
    head = {"head": LinearHead} if issubclass(network, Discriminator) else {}
    with torch.device("meta"):
        built = network(**{"num_classes": 10, "image_size": 32, **head, **settings})
    assert sum(parameter.numel() for parameter in built.parameters()) == expected


@pytest.mark.parametrize("image_size", [0, 8, 30, 31, 33, 48])
def test_image_sizes_that_are_not_a_power_of_two_from_16_are_refused(image_size: int) -> None:
    for network in (DCGAN_G, DCGAN_D, DENSE_G, DENSE_D):
        with pytest.raises(UserError, match=f"image_size={image_size}: .*power of two"):
            network(image_size=image_size)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (DCGAN_G, {"conditional": True, "batch_norm": False}, "batch_norm=true"),
        (DCGAN_G, {"conditional": True, "num_classes": 0}, "labelled data"),
        (DCGAN_D, {"label_map": True, "num_classes": 0}, "labelled data"),
        (DCGAN_G, {"latent_dim": 0}, "latent_dim=0"),
        (DCGAN_D, {"dropout": -0.1}, r"dropout=-0\.1"),
        (DCGAN_D, {"dropout": 1.0}, r"dropout=1\.0"),
        (DENSE_G, {"attention": [8, 12]}, r"attention: .* size 12 .* 4, 8, 16$"),
        (DENSE_G, {"label_map_size": 64}, r"label_map_size: .* size 64 .* 4, 8, 16$"),
        (DENSE_D, {"channels": [8] * 3, "attention": [32]}, r"attention: .* size 32 .* 4, 8, 16$"),
        (DENSE_G, {"label_map_size": 8, "num_classes": 0}, "labelled data"),
        (DENSE_D, {"label_map": True, "num_classes": 0}, "labelled data"),
        (DENSE_D, {"channels": [8] * 5}, "below 2x2"),
        (DENSE_D, {"channels": []}, "list the width"),
        (DENSE_D, {"channels": [8, 0]}, "list the width"),
        (DENSE_G, {"stem_channels": 0}, "stem_channels=0"),
        (DENSE_D, {"dropout": 1.5}, r"dropout=1\.5"),
        (BIGGAN_G, {"image_size": 48}, "power of two"),
        (BIGGAN_G, {"image_size": 4}, "power of two"),
        (BIGGAN_G, {"num_classes": 0}, "labelled data"),
        (BIGGAN_G, {"latent_dim": 10}, "multiple of 3"),
        (BIGGAN_G, {"conditioning": "per_class"}, "hierarchical=false"),
        (BIGGAN_G, {"attention": [4]}, "sizes out of"),
        (BIGGAN_G, {"channels": 12}, "multiple of 8"),
        (BIGGAN_D, {"image_size": 48}, "power of two"),
        (BIGGAN_D, {"num_classes": 0}, "labelled data"),
        (BIGGAN_D, {"attention": [32]}, "sizes out of"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    make: Callable[..., nn.Module], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(**settings)
