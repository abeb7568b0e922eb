"""Every model under every loss, what a loss brings, and what the seed decides."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from itertools import product
from unittest.mock import patch

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from cifargan import registry
from cifargan.build import build_gan
from cifargan.config import build_discriminator, build_generator, parse
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.explain import options
from cifargan.models.interface import Discriminator, DiscriminatorOutput, Generator
from cifargan.objectives.classification import ClassificationLoss
from cifargan.objectives.losses import clippable_parameters
from cifargan.training.finetune import freeze_first
from cifargan.training.loop import Trainer
from cifargan.training.step import GANStep

MODELS = options("model")
LOSSES = ("bce", "wasserstein", "hinge", "wgan_gp", "rpgan")
Compose = Callable[..., DictConfig]
OpenTrainer = Callable[..., AbstractContextManager[Trainer]]


def networks(config: DictConfig) -> tuple[Generator, Discriminator]:
    size = int(config.data.image_size)
    return (
        build_generator(config.model.generator, num_classes=10, image_size=size),
        build_discriminator(config.model.discriminator, num_classes=10, image_size=size),
    )


def normalisers(network: torch.nn.Module) -> tuple[int, int]:
    """How many batch norms a network has, and how many normalised weights."""
    modules = list(network.modules())
    return (
        sum(isinstance(module, _BatchNorm) for module in modules),
        sum(isinstance(module, parametrize.ParametrizationList) for module in modules),
    )


def test_the_models_are_all_there() -> None:
    assert {
        *("dcgan", "dcgan_dense", "dcgan64", "cdcgan", "cdcgan_concat", "sagan", "csagan"),
        *("biggan", "biggan_original", "acbiggan", "reacgan"),
    } <= set(MODELS)


@pytest.mark.parametrize(("number", "model", "loss"), [(i, *pair) for i, pair in enumerate(product(MODELS, LOSSES))])
def test_every_model_trains_an_iteration_under_every_loss(
    number: int, model: str, loss: str, trainer_for: OpenTrainer
) -> None:
    # All four pairs of regularizer and augment come in turn: 4 and 55 have no common divisor.
    regularizer, augment = list(product(("none", "lecam"), ("none", "diffaugment")))[number % 4]
    chosen = (f"model={model}", f"loss={loss}", f"regularizer={regularizer}", f"augment={augment}")
    with trainer_for(*chosen) as trainer:
        gan: GANStep = trainer.gan
        before = [p.detach().clone() for p in (*gan.generator.parameters(), *gan.discriminator.parameters())]
        metrics = {name: float(value) for name, value in gan.iterate().items()}
        after = [*gan.generator.parameters(), *gan.discriminator.parameters()]
    assert all(map(math.isfinite, metrics.values())), metrics
    assert sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True)) > len(before) / 2
    if loss == "wasserstein":
        largest = max(float(p.detach().abs().max()) for p in clippable_parameters(gan.discriminator))
        assert largest == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("choice", [*(f"model={model}" for model in MODELS), "experiment=biggan"])
def test_wasserstein_brings_what_it_needs(
    choice: str, composed: Compose, narrowed: Callable[[DictConfig], list[str]]
) -> None:
    narrow = narrowed(composed(choice))
    config = composed(choice, "loss=wasserstein", *narrow)
    for network in ("generator", "discriminator"):
        optimizer = config.optimizer[network]
        assert (optimizer.name, optimizer.lr) == ("rmsprop", pytest.approx(5e-5))
    assert config.trainer.d_steps == 5
    g, d = networks(config)
    assert normalisers(d) == (0, 0)
    # The generator is the same as under any other loss.
    own_g, own_d = networks(composed(choice, "loss=bce", *narrow))
    assert normalisers(g) == normalisers(own_g)
    assert g.state_dict().keys() == own_g.state_dict().keys()
    if choice in ("model=dcgan", "experiment=biggan"):
        assert sum(normalisers(own_d)) > 0  # or the comparison above shows nothing


def test_the_command_line_wins_over_what_a_loss_brings(composed: Compose) -> None:
    wasserstein = ("experiment=biggan", "loss=wasserstein")
    assert composed(*wasserstein, "optimizer=adam").optimizer.discriminator.name == "adam"
    assert composed(*wasserstein, "trainer.d_steps=1").trainer.d_steps == 1
    config = composed(*wasserstein, "model.discriminator.spectral_norm=true", "model.discriminator.channels=8")
    _, d = networks(config)
    assert normalisers(d)[1] > 0
    # One rate for both networks, unless the discriminator has its own.
    both = composed(*wasserstein, "optimizer.generator.lr=1e-3").optimizer
    assert both.generator.lr == both.discriminator.lr == pytest.approx(1e-3)
    own = composed(*wasserstein, "optimizer.discriminator.lr=1e-3").optimizer
    assert (own.generator.lr, own.discriminator.lr) == (pytest.approx(5e-5), pytest.approx(1e-3))


def test_another_loss_takes_back_what_wasserstein_brought(composed: Compose) -> None:
    config = composed("experiment=csagan_wgan", "loss=bce", "model.discriminator.channels=[8,8,8,8]")
    assert config.optimizer.generator.name == config.optimizer.discriminator.name == "adam"
    assert config.trainer.d_steps == 1
    _, d = networks(config)
    assert normalisers(d)[1] > 0


def test_an_experiment_wins_over_its_model_and_loss(composed: Compose) -> None:
    config = composed("experiment=biggan_original")
    assert (config.trainer.d_steps, config.trainer.batch_size, config.trainer.ema.decay) == (4, 50, 0.9999)
    assert list(config.optimizer.discriminator.betas) == [0.0, 0.999]
    assert composed("experiment=biggan").loss.label_smoothing == pytest.approx(0.1)


def test_the_seed_decides_the_weights(trainer_for: OpenTrainer) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.randn(seed)  # whatever was drawn before does not matter
        with trainer_for("model=dcgan", f"seed={seed}") as trainer:
            weights.append(torch.cat([p.flatten() for p in trainer.gan.generator.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


class Whole(Discriminator):
    """Makes its last layer itself, has no `body`, and gives an embedding alone."""

    gives = ("embedding",)

    def __init__(self, *, num_classes: int, image_size: int, width: int = 4) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, width, 4, 4)
        self.linear = torch.nn.Linear(width, 1)

    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        h = self.convolution(x).mean(dim=(2, 3))
        return DiscriminatorOutput(self.linear(h)[:, 0], embedding=h)


class Close(ClassificationLoss):
    needs = ("embedding",)

    def __init__(self) -> None:
        super().__init__(weight=2.0, fake_weight=3.0)

    def forward(self, output: DiscriminatorOutput, y: Tensor) -> Tensor:
        assert output.embedding is not None
        return output.embedding.square().mean() + 1.0


def sgd(parameters: list[torch.nn.Parameter], *, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def test_an_own_discriminator_without_a_head_an_own_class_term_and_a_plain_optimizer(
    composed: Compose, digits: Callable[[DictConfig], ImageSet]
) -> None:
    config = composed("model=dcgan", "model.generator.base_channels=4", "data=digits", "trainer.batch_size=4")
    config.model.discriminator = {"name": "whole", "width": 3}
    config.model.classification = {"name": "close"}
    config.optimizer = {player: {"name": "sgd", "lr": 0.01} for player in ("generator", "discriminator")}
    own = {"DISCRIMINATORS": {"whole": Whole}, "CLASSIFICATIONS": {"close": Close}, "OPTIMIZERS": {"sgd": sgd}}
    with ExitStack() as stack:
        for kind, parts in own.items():
            stack.enter_context(patch.dict(getattr(registry, kind), parts))
        gan = build_gan(parse(config), images=digits(config.data))
    metrics = gan.iterate()
    assert float(metrics["loss/class_real"]) > 2.0
    assert float(metrics["loss/class_fake"]) > 3.0
    assert type(gan.g_optimizer) is torch.optim.SGD
    assert gan.discriminator.blocks() == ()
    with pytest.raises(UserError, match=r"trainer\.freeze_d=1: Whole names no blocks"):
        freeze_first(gan.discriminator, 1)
