"""Small GANs: built part by part, or from the shipped configuration."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.build import build_gan, build_trainer
from cifargan.config import build_data, parse, plain
from cifargan.data.sources import ImageSet
from cifargan.data.stream import ImageStream
from cifargan.models.dense import DenseDiscriminator, DenseGenerator
from cifargan.models.heads import ProjectionHead
from cifargan.objectives.base import Augment, Penalty
from cifargan.objectives.losses import HingeLoss
from cifargan.objectives.objective import Objective
from cifargan.runs.checkpoint import CheckpointStore, load
from cifargan.runs.directory import RunDirectory
from cifargan.schema import conf_dir
from cifargan.training.ema import WeightAverage
from cifargan.training.loop import Trainer
from cifargan.training.precision import Precision, PrecisionName
from cifargan.training.schedule import Schedule
from cifargan.training.speed import PLAIN, SpeedOptions
from cifargan.training.step import GANStep

SMALL = [
    "name=small",
    "device=cpu",
    "precision=fp32",
    "data=digits",
    "evaluator=none",
    "data.image_size=16",
    "data.splits=[test]",
    "trainer.batch_size=10",
    "trainer.samples_per_class=2",
    "trainer.steps=8",
    "trainer.log_every=3",
    "trainer.sample_every=1000",
    "trainer.checkpoint_every=1000",
]


@pytest.fixture(autouse=True)
def restore_switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Building a trainer sets torch's global speed: put them back."""
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def images() -> ImageSet:
    """40 random pictures of 4 classes, 16x16."""
    generator = torch.Generator().manual_seed(5)
    return ImageSet(
        images=torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8, generator=generator),
        labels=torch.arange(40) % 4,
        classes=("ant", "bee", "cat", "dog"),
        name="noise",
        splits=("train",),
        flip=True,
    )


@pytest.fixture
def new_gan(images: ImageSet) -> Callable[..., GANStep]:
    """A function that makes a GAN of two narrow networks; each part and each number can be replaced.

    `generator` and `discriminator` are functions, so that their weights are drawn after seeding.
    """

    def make(
        *,
        generator: Callable[..., Any] = NARROW_G,
        discriminator: Callable[..., Any] = NARROW_D,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        g_lr: float = 1e-3,
        d_lr: float = 1e-3,
        loss: Any = None,
        penalties: Mapping[str, Penalty] | None = None,
        classification: Any = None,
        augment: Augment | None = None,
        ema: dict[str, Any] | None = None,
        precision: PrecisionName = "fp32",
        device: str = "cpu",
        speed: SpeedOptions = PLAIN,
        **schedule: Any,
    ) -> GANStep:
        torch.manual_seed(0)
        target = torch.device(device)
        shape = {"num_classes": images.num_classes, "image_size": images.image_size}
        g, d = generator(**shape).to(target), discriminator(**shape).to(target)
        numbers: dict[str, Any] = {
            "steps": 10,
            "batch_size": 8,
            "d_steps": 1,
            "accumulate": 1,
            "log_every": 2,
            "sample_every": 5,
        }
        numbers |= {"samples_per_class": 2, "checkpoint_every": 5, "keep": 2, **schedule}
        plan = Schedule(**numbers)
        return GANStep(
            generator=g,
            discriminator=d,
            objective=Objective(loss or HingeLoss(), penalties, classification).to(target),
            augment=augment or Augment(),
            stream=ImageStream(images=images, batch_size=plan.micro_batch, device=target, seed=0),
            g_optimizer=optimizer(g.parameters(), lr=g_lr),
            d_optimizer=optimizer(d.parameters(), lr=d_lr),
            ema=WeightAverage(g, **(ema or {})),
            precision=Precision(precision, target),
            schedule=plan,
            num_classes=images.num_classes,
            device=target,
            speed=speed,
        )

    return make


NARROW_G = partial(DenseGenerator, latent_dim=4, stem_channels=4, channels=4)
NARROW_D = partial(DenseDiscriminator, channels=[4, 4], dropout=0.0, head=ProjectionHead)


@cache
def composed(*overrides: str) -> DictConfig:
    """The shipped configuration for a small run on digits, with overrides. No setting refers to one of the trainer."""
    own = [override for override in overrides if override.startswith("trainer.")]
    if own:
        rest = composed(*(override for override in overrides if override not in own))
        return cast(DictConfig, OmegaConf.merge(rest, OmegaConf.from_dotlist(own)))
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return OmegaConf.create(plain(hydra.compose("train", [*SMALL, *overrides])))


@cache
def data(node: str) -> ImageSet:
    """What a data node, as YAML, describes: read once for all tests, which only look at it."""
    return build_data(cast(DictConfig, OmegaConf.create(node)))


@pytest.fixture
def new_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """A function that builds the trainer of a run in the folder `name` from overrides, or resumes the run there."""
    monkeypatch.setattr("cifargan.config.build_data", lambda node: data(OmegaConf.to_yaml(node)))

    def make(name: str, *overrides: str, resume: bool = False) -> Trainer:
        directory = RunDirectory(tmp_path / name)
        directory.path.mkdir(exist_ok=True)
        state = load(CheckpointStore(directory.checkpoints).find("last")) if resume else None
        return build_trainer(parse(composed(*overrides).copy()), directory, state=state)

    return make


@pytest.fixture
def gan_of() -> Callable[..., GANStep]:
    """A function that builds the GAN of the shipped configuration with overrides, and no trainer around it."""

    def make(*overrides: str) -> GANStep:
        config = composed(*overrides)
        return build_gan(parse(config), images=data(OmegaConf.to_yaml(config.data)), device=torch.device("cpu"))

    return make
