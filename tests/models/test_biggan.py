"""BigGAN against published parameter counts, and the ways in which latents and labels reach the image."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cifargan.errors import UserError
from cifargan.models.biggan import BigGANDiscriminator, BigGANGenerator
from cifargan.models.heads import AuxiliaryHead, EmbeddingHead, LinearHead, ProjectionHead
from cifargan.models.interface import HeadFactory
from cifargan.models.layers import SelfAttention
from cifargan.models.spectral import trained_weight


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def small_generator(**settings: Any) -> BigGANGenerator:
    defaults: dict[str, Any] = {"num_classes": 3, "image_size": 32, "channels": 8, "latent_dim": 8}
    return BigGANGenerator(**{**defaults, "class_embedding_dim": 4, **settings})


def small_discriminator(**settings: Any) -> BigGANDiscriminator:
    defaults: dict[str, Any] = {"num_classes": 3, "image_size": 32, "channels": 8, "head": ProjectionHead}
    return BigGANDiscriminator(**{**defaults, **settings})


def latents(n: int = 3, z: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, z), torch.arange(n) % 3


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def output_shapes(network: nn.Module, modules: nn.ModuleList | nn.Sequential, *args: Tensor) -> list[int]:
    """Sizes of what `modules` give while `network` runs."""
    sizes: list[int] = []
    hooks = [module.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1])) for module in modules]
    network(*args)
    for hook in hooks:
        hook.remove()
    return sizes


def test_parameter_counts_of_the_best_reference() -> None:
    # init="normal" only because drawing large orthogonal matrices takes time.
    assert count(BigGANGenerator(num_classes=10, image_size=32, init="normal")) == 9_416_196
    body = BigGANDiscriminator(num_classes=10, image_size=32, head=ProjectionHead, init="normal")
    assert count(body) == 2_415_170


def test_parameter_counts_of_the_original_authors() -> None:
    generator = BigGANGenerator(
        num_classes=10,
        image_size=32,
        latent_dim=128,
        channels=256,
        attention=[],
        conditioning="per_class",
        hierarchical=False,
        init="normal",
    )
    assert count(generator) == 4_304_387
    discriminator = BigGANDiscriminator(
        num_classes=10, image_size=32, head=ProjectionHead, channels=256, attention=[], init="normal"
    )
    assert count(discriminator) == 4_207_361


@pytest.mark.parametrize(
    ("image_size", "blocks"), [(8, [8, 8]), (32, [16, 8, 8, 8]), (64, [32, 16, 8, 8, 8])], ids=["8", "32", "64"]
)
def test_sizes_of_feature_maps(image_size: int, blocks: list[int]) -> None:
    attention = [16] if image_size > 8 else []
    generator = small_generator(image_size=image_size, latent_dim=60, attention=attention)
    z, y = latents(z=60)
    images = generator(z, y)
    assert images.shape == (3, 3, image_size, image_size)
    assert images.abs().max().item() <= 1
    sizes = output_shapes(generator, generator.blocks, z, y)
    assert sizes == [8 << index for index in range(len(sizes))]
    assert sizes[-1] == image_size
    discriminator = small_discriminator(image_size=image_size, attention=attention)
    assert discriminator(images, y).logits.shape == (3,)
    assert output_shapes(discriminator, discriminator.body[::2], images, y) == blocks


@pytest.mark.parametrize("image_size", [32, 64])
def test_attention_stands_at_16x16_once(image_size: int) -> None:
    for network, args in (
        (small_generator(image_size=image_size, latent_dim=60), latents(z=60)),
        (small_discriminator(image_size=image_size), (torch.randn(3, 3, image_size, image_size), latents()[1])),
    ):
        found = nn.ModuleList(module for module in network.modules() if isinstance(module, SelfAttention))
        assert output_shapes(network, found, *args) == [16]


@pytest.mark.parametrize("make", [small_generator, small_discriminator])
def test_spectral_norm_covers_every_layer_but_the_generators_embedding(make: Any) -> None:
    layers = (nn.Conv2d, nn.Linear, nn.Embedding)
    bare = {
        name
        for name, module in make().named_modules()
        if isinstance(module, layers) and not parametrize.is_parametrized(module)
    }
    assert bare == ({"embed"} if make is small_generator else set())
    assert not any(parametrize.is_parametrized(module) for module in make(spectral_norm=False).modules())


def test_each_chunk_of_the_latent_conditions_its_own_block() -> None:
    generator = small_generator(image_size=32).eval()
    z, y = latents()
    seen: dict[int, Tensor] = {}
    stem: list[Tensor] = []
    for index, block in enumerate(generator.blocks):
        block.register_forward_pre_hook(lambda _, args, index=index: seen.update({index: args[1]}))
    generator.stem.register_forward_pre_hook(lambda _, args: stem.append(args[0]))
    generator(z, y)
    torch.testing.assert_close(stem[0], z[:, :2])
    for index in range(3):
        label = generator.embed(y)
        torch.testing.assert_close(seen[index], torch.cat([label, z[:, 2 * index + 2 : 2 * index + 4]], dim=1))


@pytest.mark.parametrize("chunk", range(4))
def test_a_chunk_of_the_latent_acts_from_its_block_onward(chunk: int) -> None:
    generator = small_generator(image_size=32).eval()
    z, y = latents()
    outputs: list[Tensor] = []
    for module in (generator.stem, *generator.blocks):
        module.register_forward_hook(lambda _, __, out: outputs.append(out))
    images = generator(z, y)
    moved = z.clone()
    moved[:, 2 * chunk : 2 * chunk + 2] += 1
    changed_images = generator(moved, y)
    same = [torch.equal(a, b) for a, b in zip(outputs[:4], outputs[4:], strict=True)]
    assert same == [True] * chunk + [False] * (4 - chunk)
    assert not torch.allclose(images, changed_images)


def test_without_hierarchy_the_stem_has_all_of_the_latent() -> None:
    generator = small_generator(hierarchical=False).eval()
    z, y = latents()
    stem: list[Tensor] = []
    generator.stem.register_forward_pre_hook(lambda _, args: stem.append(args[0]))
    conditions: list[Tensor] = []
    for block in generator.blocks:
        block.register_forward_pre_hook(lambda _, args: conditions.append(args[1]))
    generator(z, y)
    torch.testing.assert_close(stem[0], z)
    assert len(conditions) == 3
    for condition in conditions:
        torch.testing.assert_close(condition, generator.embed(y))


def test_all_blocks_train_the_one_embedding() -> None:
    generator = small_generator()
    assert [name for name, module in generator.named_modules() if isinstance(module, nn.Embedding)] == ["embed"]
    z, y = latents(6)
    labels: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Tensor) -> None:
        labels.append(out)

    generator.embed.register_forward_hook(keep)
    conditions: list[Tensor] = []
    for block in generator.blocks:
        block.register_forward_pre_hook(lambda _, args: conditions.append(args[1]))
    images = generator(z, y)
    grads = torch.autograd.grad(images.square().sum(), [labels[0], *conditions])
    assert len(conditions) == 3
    assert all(grad[:, :4].abs().max().item() > 0 for grad in grads[1:])
    torch.testing.assert_close(grads[0], sum(grad[:, :4] for grad in grads[1:]))


@pytest.mark.parametrize("settings", [{}, {"hierarchical": False}])
def test_the_label_changes_the_image(settings: dict[str, bool]) -> None:
    generator = small_generator(**settings).eval()
    z = torch.randn(1, 8).expand(2, -1)
    first, second = generator(z, torch.tensor([0, 2]))
    assert (first - second).abs().max().item() > 1e-3


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
    assert small_discriminator().joint_pass


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 48}, "power of two"),
        ({"image_size": 4}, "power of two"),
        ({"num_classes": 0}, "labelled data"),
        ({"latent_dim": 10}, "multiple of 4"),
        ({"conditioning": "per_class"}, "hierarchical=false"),
        ({"attention": [4]}, "sizes out of"),
        ({"channels": 12}, "multiple of 8"),
    ],
)
def test_contradictory_generator_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_generator(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 48}, "power of two"),
        ({"num_classes": 0}, "labelled data"),
        ({"attention": [32]}, "sizes out of"),
    ],
)
def test_contradictory_discriminator_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_discriminator(**settings)
