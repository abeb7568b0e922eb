"""BigGAN: how latents and labels reach the image; what all networks keep is in test_networks.py."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.models.biggan import BigGANDiscriminator, BigGANGenerator
from cifargan.models.heads import AuxiliaryHead, EmbeddingHead, LinearHead, ProjectionHead
from cifargan.models.interface import HeadFactory
from cifargan.models.layers import SelfAttention
from cifargan.models.spectral import trained_weight


def small_generator(**settings: Any) -> BigGANGenerator:
    defaults: dict[str, Any] = {"num_classes": 3, "image_size": 32, "channels": 8, "latent_dim": 8}
    return BigGANGenerator(**{**defaults, "class_embedding_dim": 4, **settings})


def small_discriminator(**settings: Any) -> BigGANDiscriminator:
    defaults: dict[str, Any] = {"num_classes": 3, "image_size": 32, "channels": 8, "head": ProjectionHead}
    return BigGANDiscriminator(**{**defaults, **settings})


def latents(n: int = 3, z: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, z), torch.arange(n) % 3


def sizes_of(modules: Iterable[nn.Module]) -> list[int]:
    """Sizes of the feature maps that `modules` give from now on."""
    sizes: list[int] = []
    for module in modules:
        module.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
    return sizes


@pytest.mark.parametrize(
    ("image_size", "blocks"), [(8, [8, 8]), (32, [16, 8, 8, 8]), (64, [32, 16, 8, 8, 8])], ids=["8", "32", "64"]
)
def test_sizes_of_feature_maps_and_one_attention_at_16(image_size: int, blocks: list[int]) -> None:
    attention = [16] if image_size > 8 else []
    generator = small_generator(image_size=image_size, latent_dim=60, attention=attention)
    discriminator = small_discriminator(image_size=image_size, attention=attention)
    sizes, d_sizes = sizes_of(generator.blocks), sizes_of(discriminator.body[::2])
    attended = sizes_of(m for net in (generator, discriminator) for m in net.modules() if isinstance(m, SelfAttention))
    z, y = latents(z=60)
    images = generator(z, y)
    assert images.shape == (3, 3, image_size, image_size)
    assert sizes == [8 << index for index in range(image_size.bit_length() - 3)]
    assert discriminator(images, y).logits.shape == (3,)
    assert d_sizes == blocks
    assert attended == 2 * attention


def conditions_of(generator: BigGANGenerator) -> list[Tensor]:
    """The conditions that the blocks take from now on."""
    seen: list[Tensor] = []
    for block in generator.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    return seen


@pytest.mark.parametrize("hierarchical", [True, False])
def test_each_chunk_of_the_latent_conditions_its_own_block_or_the_stem_has_all(
    hierarchical: bool, inputs_of: Callable[[nn.Module], list[Tensor]]
) -> None:
    generator = small_generator(hierarchical=hierarchical).eval()
    z, y = latents()
    stem, conditions = inputs_of(generator.stem), conditions_of(generator)
    generator(z, y)
    label = generator.embed(y)
    torch.testing.assert_close(stem[0], z[:, :2] if hierarchical else z)
    assert len(conditions) == 3
    for index, condition in enumerate(conditions):
        chunk = z[:, 2 * index + 2 : 2 * index + 4]
        torch.testing.assert_close(condition, torch.cat([label, chunk], dim=1) if hierarchical else label)


def test_a_chunk_of_the_latent_acts_from_its_block_onward() -> None:
    generator = small_generator().eval()
    z, y = latents()
    outputs: list[Tensor] = []
    for module in (generator.stem, *generator.blocks):
        module.register_forward_hook(lambda _, __, out: outputs.append(out))
    images, expected = generator(z, y), outputs[:]
    for chunk in range(4):
        outputs.clear()
        moved = z.clone()
        moved[:, 2 * chunk : 2 * chunk + 2] += 1
        assert not torch.allclose(generator(moved, y), images)
        same = [torch.equal(a, b) for a, b in zip(expected, outputs, strict=True)]
        assert same == [True] * chunk + [False] * (4 - chunk)


def test_all_blocks_train_the_one_embedding() -> None:
    generator = small_generator()
    assert [name for name, module in generator.named_modules() if isinstance(module, nn.Embedding)] == ["embed"]
    z, y = latents(6)
    labels: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Tensor) -> None:
        labels.append(out)

    generator.embed.register_forward_hook(keep)
    conditions = conditions_of(generator)
    images = generator(z, y)
    grads = torch.autograd.grad(images.square().sum(), [labels[0], *conditions])
    assert len(conditions) == 3
    assert all(grad[:, :4].abs().max().item() > 0 for grad in grads[1:])
    torch.testing.assert_close(grads[0], sum(grad[:, :4] for grad in grads[1:]))


def test_per_class_tables_tell_classes_apart_once_they_differ() -> None:
    generator = small_generator(conditioning="per_class", hierarchical=False).eval()
    z, y = torch.randn(1, 8).expand(2, -1), torch.tensor([0, 2])
    first, second = generator(z, y)
    torch.testing.assert_close(first, second)
    tables = [p for name, p in generator.named_parameters() if p.shape == (3, 8)]
    assert len(tables) == 3 * 2 * 2
    for table in tables:
        nn.init.normal_(table)
    first, second = generator(z, y)
    assert (first - second).abs().max().item() > 1e-3


def test_every_batch_norm_has_the_eps() -> None:
    norms = [m for m in small_generator(batch_norm_eps=0.01).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.eps for norm in norms] == [0.01] * 7
    assert {m.eps for m in small_generator().modules() if isinstance(m, nn.BatchNorm2d)} == {1e-4}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small_discriminator().modules())


@pytest.mark.parametrize("make", [small_generator, small_discriminator])
@pytest.mark.parametrize("normalised", [False, True])
def test_orthogonal_initialisation_reaches_every_layer(make: Any, normalised: bool) -> None:
    network = make(spectral_norm=normalised)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) > 15
    for layer in layers:
        matrix = trained_weight(layer).detach().flatten(1)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(len(gram)))
        torch.testing.assert_close(layer.weight, trained_weight(layer), atol=1e-5, rtol=1e-5)
        if isinstance(getattr(layer, "bias", None), Tensor):
            assert layer.bias.abs().max().item() == 0  # type: ignore[union-attr, operator]


def test_normal_initialisation_has_deviation_002() -> None:
    for network in (small_generator(init="normal", channels=16), small_discriminator(init="normal", channels=16)):
        weights = [trained_weight(m).flatten() for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert torch.cat(weights).std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_discriminator_sums_rectified_features(spectral_norm: bool) -> None:
    network = small_discriminator(attention=[], spectral_norm=spectral_norm)
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    h = x
    for block in network.body:
        h = block(h)
    h = h.clamp(min=0).mean(dim=(2, 3)) * 64
    torch.testing.assert_close(network(x, y).logits, network.head(h, y).logits, atol=1e-4, rtol=1e-4)


def test_generator_ends_in_norm_relu_conv_and_tanh() -> None:
    generator = small_generator(spectral_norm=False).eval()
    nn.init.uniform_(generator.norm.weight, 5, 50)  # so that tanh bends
    nn.init.normal_(generator.norm.bias)
    features: list[Tensor] = []
    generator.attention[-1].register_forward_hook(lambda _, __, out: features.append(out))
    images = generator(*latents())
    h = features[0] / (1 + 1e-4) ** 0.5  # running statistics are (0, 1) before training
    h = h * generator.norm.weight.view(1, -1, 1, 1) + generator.norm.bias.view(1, -1, 1, 1)
    h = torch.nn.functional.conv2d(h.clamp(min=0), generator.conv.weight, padding=1)
    assert h.abs().max().item() > 2
    torch.testing.assert_close(images, 1 - 2 / ((2 * h).exp() + 1), atol=1e-5, rtol=1e-5)


def test_first_discriminator_block_sees_the_raw_image() -> None:
    network = small_discriminator()
    assert [bool(isinstance(block.activation, nn.ReLU)) for block in network.body[::2]] == [False, True, True, True]
    x = torch.randn(2, 3, 32, 32)
    before = x.clone()
    network(x, torch.tensor([0, 1]))
    torch.testing.assert_close(x, before, atol=0, rtol=0)


@pytest.mark.parametrize("head", [LinearHead, AuxiliaryHead, EmbeddingHead])
def test_discriminator_takes_any_head(head: HeadFactory) -> None:
    output = small_discriminator(head=head)(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert output.logits.shape == (2,)
    assert (output.class_logits is None) == (head is LinearHead)


def test_bfloat16_autocast_and_channels_last_stay_close_to_full_precision() -> None:
    generator, discriminator = small_generator(), small_discriminator()
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, SelfAttention):
            nn.init.constant_(module.gamma, 1.0)
    z, y = latents(16)
    images = generator(z, y)
    logits = discriminator(images, y).logits
    generator.to(memory_format=torch.channels_last)
    discriminator.to(memory_format=torch.channels_last)
    torch.testing.assert_close(generator(z, y), images, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half_images = generator(z, y)
        half_logits = discriminator(images, y).logits
    (half_logits.sum() + half_images.float().sum()).backward()
    assert (half_images.float() - images).square().mean().sqrt().item() < 0.02
    assert (half_logits - logits).abs().max().item() < 0.05 * logits.abs().max().item()
    for name, parameter in (*generator.named_parameters(), *discriminator.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("setting", ["channels", "latent_dim", "class_embedding_dim"])
def test_sizes_below_one_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"{setting}=0"):
        BigGANGenerator(num_classes=2, image_size=16, **{setting: 0})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="channels=0"):
        BigGANDiscriminator(num_classes=2, image_size=16, head=LinearHead, channels=0)
