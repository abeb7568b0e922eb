"""Starting from networks that were trained before."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.build import build_gan, take_over
from cifargan.config import build_discriminator, build_generator, parse
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.models.spectral import remove_spectral_norm_
from cifargan.runs.networks import Description, TrainedNetworks, Weights
from cifargan.training.finetune import Start, freeze_first
from cifargan.training.step import GANStep, frozen

BIGGAN = (
    *("model=biggan", "data=digits", "data.image_size=16", "init=there", "trainer.batch_size=4", "trainer.d_steps=1"),
    *("model.generator.channels=8", "model.generator.latent_dim=6", "model.generator.attention=[]"),
    *("model.discriminator.channels=8", "model.discriminator.attention=[8]", "precision=fp32"),
    "trainer.speed=plain",
)
CDCGAN = (
    *(
        "model=cdcgan",
        "data=digits",
        "data.image_size=16",
        "init=there",
        "trainer.batch_size=4",
        "loss=hinge",
        "trainer.speed=plain",
    ),
    *("model.generator.base_channels=4", "model.generator.latent_dim=6", "model.discriminator.base_channels=4"),
)
Composed = Callable[..., DictConfig]


def images_of(classes: int) -> ImageSet:
    pixels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = tuple("abcdefghij"[:classes])
    return ImageSet(
        images=pixels, labels=torch.arange(12) % classes, classes=names, name="x", splits=("train",), flip=False
    )


def start_of(config: DictConfig, classes: int, *, plain: bool = False) -> Start:
    shape: dict[str, Any] = {"num_classes": classes, "image_size": 16}
    torch.manual_seed(99)
    generator, ema = (build_generator(config.model.generator, **shape) for _ in range(2))
    discriminator = build_discriminator(config.model.discriminator, **shape)
    if plain:
        remove_spectral_norm_(generator)
        ema = generator
    weights: dict[str, Weights] = {
        "ema": ema.state_dict(),
        "raw": generator.state_dict(),
        "discriminator": discriminator.state_dict(),
    }
    about = Description(config=config, classes=tuple("klmnopqrst"[:classes]), image_size=16, step=7)
    if plain:
        weights = {"ema": ema.state_dict()}
    return Start(networks=TrainedNetworks(path=Path("there"), about=about, weights=weights, plain=plain, speed={}))


def game_of(config: DictConfig, classes: int, start: Start | None = None) -> GANStep:
    images = images_of(classes)
    gan = build_gan(parse(config), images=images, device=torch.device("cpu"))
    if start is not None:
        take_over(start, gan, parse(config), images)
    return gan


@pytest.mark.parametrize(
    ("overrides", "new"),
    [
        (BIGGAN, ["generator.embed.weight", "discriminator.head.embed.weight"]),
        (
            CDCGAN,
            [f"generator.norms.{i}.{part}" for i in range(2) for part in ("gain", "bias")]
            + ["discriminator.head.embed.weight"],
        ),
    ],
    ids=["biggan", "cdcgan"],
)
def test_what_depends_on_classes_is_new_and_all_else_is_not(
    composed: Composed, overrides: tuple[str, ...], new: list[str]
) -> None:
    config = composed(*overrides)
    start, untouched = start_of(config, 10), game_of(config, 3)
    gan = game_of(config, 3, start)
    assert start.new == new
    assert start.facts()["new"] == new
    assert f"new for 3 classes instead of 10: {', '.join(new)}" in start.lines(("a", "b", "c"))[1]
    fresh = {name.replace(".weight", "") for name in new}
    assert start.discriminator is not None
    for name, network, weights, before in (
        ("generator", gan.generator, start.networks.of("raw"), untouched.generator),
        ("generator", gan.ema.generator, start.networks.of("ema"), untouched.generator),
        ("discriminator", gan.discriminator, start.discriminator, untouched.discriminator),
    ):
        found = 0
        for key, tensor in network.state_dict().items():
            is_new = f"{name}.{key}".partition(".parametrizations")[0].removesuffix(".weight") in fresh
            found += is_new
            assert torch.equal(tensor, before.state_dict()[key] if is_new else weights[key]), key
        assert found
    assert gan.step == 0
    assert not gan.g_optimizer.state
    # The average starts from its own weights, which are not those of the generator.
    assert any(
        not torch.equal(start.networks.of("ema")[key], start.networks.of("raw")[key])
        for key in start.networks.of("ema")
    )
    gan.iterate()


def test_a_file_gives_its_generator_to_one_with_spectral_norm(composed: Composed) -> None:
    config = composed(*BIGGAN)
    start, untouched = start_of(config, 3, plain=True), game_of(config, 3)
    gan = game_of(config, 3, start)
    with torch.device("cpu"):
        exported = build_generator(config.model.generator, num_classes=3, image_size=16)
    remove_spectral_norm_(exported)
    exported.load_state_dict(dict(start.networks.of("ema")))
    z, y = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
    for network in (gan.generator.eval(), gan.ema.generator):
        # The largest singular value of what was divided by its own is 1, as far as 15 iterations find it.
        torch.testing.assert_close(network(z, y), exported.eval()(z, y), atol=0.02, rtol=0)
    own, theirs = gan.discriminator.state_dict(), untouched.discriminator.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    assert "a new one is trained" in start.lines(tuple("klm"))[1]


def test_other_names_of_as_many_classes_are_told(composed: Composed) -> None:
    start = start_of(composed(*BIGGAN), 3)
    game_of(composed(*BIGGAN), 3, start)
    assert start.new == []
    assert "other class names" in start.lines(("a", "b", "c"))[1]
    assert len(start.lines(start.about.classes)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.generator.channels=16", r"another generator: .* leave out model="),
        ("model.discriminator.channels=16", r"another discriminator: .* leave out model="),
        ("model.generator.spectral_norm=false", "another generator: .* is absent there"),
    ],
)
def test_other_networks_are_refused(composed: Composed, override: str, message: str) -> None:
    start = start_of(composed(*BIGGAN), 10)
    with pytest.raises(UserError, match=f"^init=there has {message}"):
        game_of(composed(*BIGGAN, override), 3, start)


def test_other_sizes_are_refused(composed: Composed) -> None:
    with pytest.raises(UserError, match=r"is of 16x16 images, the data are 32x32: set data\.image_size=16"):
        start_of(composed(*BIGGAN), 3).require_size(32)


def test_frozen_puts_back_what_was_there() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    network[0].requires_grad_(False)
    with frozen(network):
        assert not any(weight.requires_grad for weight in network.parameters())
    assert [weight.requires_grad for weight in network.parameters()] == [False, False, True, True]


@pytest.mark.parametrize("overrides", [BIGGAN, CDCGAN], ids=["spectral norm", "batch norm"])
def test_frozen_blocks_stay_as_they_are(composed: Composed, overrides: tuple[str, ...]) -> None:
    # Hinge's gradients for a bias can cancel; those of the cross-entropy do not.
    rest = [override for override in overrides if not override.startswith("loss=")]
    config = composed(*rest, "loss=bce", "trainer.freeze_d=1", "trainer.batched_spectral_norm=true")
    gan = game_of(config, 3, start_of(config, 3))
    held = {weight for layer in gan.discriminator.blocks()[0] for weight in layer.parameters()}
    before = {weight: weight.clone() for weight in gan.discriminator.parameters()}
    for _ in range(3):
        gan.iterate()
    assert held
    for weight, value in before.items():
        # A zero that gets no gradient stays one: a first bias before batch norm, say.
        assert torch.equal(weight, value) == (weight in held)
        assert weight.requires_grad == (weight not in held)
    # And it resumes from its state.
    again = game_of(config, 3)
    again.load_state(gan.state())
    assert not any(weight.requires_grad for layer in again.discriminator.blocks()[0] for weight in layer.parameters())
    again.iterate()


def test_blocks_begin_at_convolutions(composed: Composed) -> None:
    build = partial(build_discriminator, num_classes=3, image_size=16)
    for overrides, lengths in ((BIGGAN, [2, 2, 2]), (CDCGAN, [2, 3])):
        discriminator = build(composed(*overrides).model.discriminator)
        if overrides is BIGGAN:
            assert [len(block) for block in discriminator.blocks()] == lengths
        assert sum(len(block) for block in discriminator.blocks()) == len(discriminator.get_submodule("body"))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^trainer\.freeze_d=9: \w+Discriminator has \d blocks$"):
            freeze_first(discriminator, 9)


def test_nothing_to_freeze_in_a_file(composed: Composed) -> None:
    config = composed(*BIGGAN, "trainer.freeze_d=1")
    with pytest.raises(UserError, match=r"^trainer\.freeze_d=1: there holds no discriminator"):
        game_of(config, 3, start_of(OmegaConf.create(config), 3, plain=True))
