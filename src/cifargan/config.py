"""Parse a composed configuration once: every setting is checked, and every part is ready to be built."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.data.sources import ImageSet, ImageSource
from cifargan.device import select_device
from cifargan.errors import UserError, did_you_mean
from cifargan.evaluation.evaluator import Evaluator, FeatureEvaluator, NoEvaluator
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.models.interface import Discriminator, Generator, Head
from cifargan.objectives.base import Augment, Loss, Penalty
from cifargan.objectives.classification import ClassificationLoss
from cifargan.objectives.objective import Objective
from cifargan.registry import (
    AUGMENTS,
    CLASSIFICATIONS,
    DISCRIMINATORS,
    EXTRACTORS,
    GENERATORS,
    HEADS,
    LOSSES,
    METRICS,
    OPTIMIZERS,
    PENALTIES,
    SOURCES,
)
from cifargan.schema import arguments, lookup, part, section, takes, without
from cifargan.settings import Critic, Settings, TrainerExtras
from cifargan.training.ema import WeightAverage
from cifargan.training.schedule import Schedule
from cifargan.training.speed import SpeedSettings

log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT")

GROUPS = ("data", "augment", "regularizer", "evaluator", "optimizer", "trainer", "model", "loss")
PLAYERS = ("generator", "discriminator")
SPLITS = ("train", "test")
SHAPE = ("num_classes", "image_size")  # what the data decide about a network
HEAD_PROVIDED = ("in_features", "num_classes", "spectral_norm")
EVALUATOR_PROVIDED = ("extractor", "images", "final_images", "table", "device")
EVALUATOR_OWN = tuple(inspect.signature(FeatureEvaluator).parameters.keys() - {*EVALUATOR_PROVIDED})


TRAINER_KINDS = (Schedule, SpeedSettings, TrainerExtras)
TRAINER_KEYS = tuple(key for kind in TRAINER_KINDS for key in kind.__dataclass_fields__ if key != "fits_memory")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a configuration describes: settings as values, parts as functions that build them.

    Attributes:
        config: the configuration itself, without interpolations.
        root: the settings at its root.
        device: where to train.
        schedule: how many updates of which size, and what happens when.
        speed: what makes a step fast.
        extras: the other settings under `trainer.`.
        load_data: load the images.
        generator: build it from `num_classes` and `image_size`.
        discriminator: build it, head included, from the same.
        objective: build what both networks minimise: loss, penalties, class term.
        augment: build the augmentation.
        optimizers: build the optimiser of each network from `parameters`, and `fused` and `recorded` if it takes them.
        ema: average the weights of a generator.
        evaluator: build the evaluator for `images`, with its networks and the features of the images.
    """

    config: DictConfig
    root: Settings
    device: torch.device
    schedule: Schedule
    speed: SpeedSettings
    extras: TrainerExtras
    load_data: Callable[[], ImageSet]
    generator: Callable[..., Generator]
    discriminator: Callable[..., Discriminator]
    objective: Callable[[], Objective]
    augment: Callable[[], Augment]
    optimizers: Mapping[str, Callable[..., torch.optim.Optimizer]]
    ema: Callable[[Generator], WeightAverage]
    evaluator: Callable[[ImageSet], Evaluator]


def parse(config: DictConfig) -> Parts:
    """Check every setting against the code that receives it. Nothing is built or loaded, so a typo costs no time.

    Args:
        config: the composed configuration, without interpolations.

    Raises:
        UserError: an unknown name or key, a value of the wrong type, or parts that do not go together.
    """
    for group in GROUPS:
        section(config, group)
    root = _root(config)
    device = select_device(root.device)
    trainer = section(config, "trainer")
    for where, known in (
        ("optimizer", PLAYERS),
        ("model", (*PLAYERS, "classification")),
        ("trainer", (*TRAINER_KEYS, "ema")),
    ):
        for key in map(str, section(config, where)):
            if key not in known:
                hint = did_you_mean(key, known) or f"; there are {', '.join(known)}"
                raise UserError(f"{where}.{key}: no such setting{hint}")
    parts = Parts(
        config=config,
        root=root,
        device=device,
        schedule=_schedule(trainer),
        speed=_known(SpeedSettings, trainer, "trainer"),
        extras=_known(TrainerExtras, trainer, "trainer"),
        load_data=partial(build_data, config.data),
        generator=generator_part(section(config, "model.generator")),
        discriminator=discriminator_part(section(config, "model.discriminator")),
        objective=objective_part(config),
        augment=part(AUGMENTS, config.augment, "augment", kind=Augment),
        optimizers={name: optimizer_part(config, f"optimizer.{name}") for name in PLAYERS},
        ema=partial(
            WeightAverage,
            **arguments(WeightAverage, section(config, "trainer.ema"), "trainer.ema", provided=["generator"]),
        ),
        evaluator=evaluator_part(config.evaluator, data=config.data, device=device),
    )
    part(SOURCES, config.data, "data", kind=ImageSource)
    arguments(Critic, section(config, "loss.critic"), "loss.critic")
    _require_outputs(config)
    if parts.extras.freeze_d and root.init is None:
        raise UserError(f"trainer.freeze_d={parts.extras.freeze_d}: freezes trained blocks: set init=RUN too")
    return parts


def objective_part(config: DictConfig) -> Callable[[], Objective]:
    """What `loss`, `regularizer` and `model.classification` describe together."""
    loss = part(LOSSES, without(config.loss, "critic"), "loss", kind=Loss)
    where = "model.classification"
    class_term = part(CLASSIFICATIONS, section(config, where), where, kind=ClassificationLoss)
    penalties = {}
    for key in map(str, config.regularizer):
        node = section(config, f"regularizer.{key}")
        if "name" not in node:
            setting = ".".join(["regularizer", key, *map(str, list(node)[:1])])
            raise UserError(
                f"{setting} is set, but {key} is not chosen: choose it with 'regularizer=[{key}]', or leave the setting out"
            )
        penalties[key] = part(PENALTIES, node, f"regularizer.{key}", kind=Penalty)
    return lambda: Objective(loss(), {name: build() for name, build in penalties.items()}, class_term())


def _require_outputs(config: DictConfig) -> None:
    """Check that the discriminator gives what the class term and the penalties read, and that one of them reads it.

    Raises:
        UserError: it does not, or none does.
    """
    terms = {"model.classification": CLASSIFICATIONS, **{f"regularizer.{key}": PENALTIES for key in config.regularizer}}
    model = section(config, "model.discriminator")
    gives, source = given_beside_logits(model), f"model.discriminator.name={model.name}"
    if "head" in model:
        source = f"model.discriminator.head.name={model.head.name}"
    read = False
    for where, registry in terms.items():
        node = section(config, where)
        term: Any = lookup(registry, node, where)
        read = read or bool(term.needs)
        if missing := [field for field in term.needs if field not in gives]:
            heads: Any = HEADS
            fitting = [name for name, head in heads.items() if {*term.needs} <= {*head.gives}]
            raise UserError(
                f"{source} does not give {' and '.join(missing)}, which {where}.name={node.name} needs: "
                f"choose the head {' or '.join(fitting) or 'of your own that does'}, or another {where}"
            )
    if gives and not read:
        parts: Any = CLASSIFICATIONS
        fitting = [name for name, term in parts.items() if term.needs and {*term.needs} <= {*gives}]
        raise UserError(
            f"{source} gives {' and '.join(gives)}, which nothing trains: "
            f"choose model.classification.name={' or '.join(fitting) or '...'}, or another head"
        )


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as dicts, lists and scalars, every interpolation resolved."""
    container = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return {str(key): value for key, value in container.items()}


def _root(config: DictConfig) -> Settings:
    known = (*GROUPS, *Settings.__dataclass_fields__)
    for key in map(str, config):
        if key not in known:
            raise UserError(f"{key}: no such setting{did_you_mean(key, known)}")
    return _known(Settings, config, "")


def _schedule(trainer: DictConfig) -> Schedule:
    fits_memory = trainer.get("accumulate") == "auto"
    node = without(trainer, "fits_memory")
    if fits_memory:
        node.accumulate = 1
    return _known(Schedule, node, "trainer", fits_memory=fits_memory)


def _known(kind: type[SettingsT], node: DictConfig, where: str, **provided: Any) -> SettingsT:
    """The settings of a node that a dataclass knows; the node may hold others."""
    others = [str(key) for key in node if key not in kind.__dataclass_fields__]  # type: ignore[attr-defined]
    return kind(**arguments(kind, without(node, *others), where, provided=provided), **provided)


def generator_part(node: DictConfig) -> Callable[..., Generator]:
    """What `model.generator` describes; takes `num_classes` and `image_size`."""
    return part(GENERATORS, node, "model.generator", kind=Generator, provided=SHAPE)


def discriminator_part(node: DictConfig) -> Callable[..., Discriminator]:
    """What `model.discriminator` describes, with its head if it takes one; takes `num_classes` and `image_size`."""
    where = "model.discriminator"
    if not takes(lookup(DISCRIMINATORS, node, where, Discriminator), "head"):
        return part(DISCRIMINATORS, node, where, provided=SHAPE)
    body = part(DISCRIMINATORS, without(node, "head"), where, provided=(*SHAPE, "head"))
    head = part(HEADS, section(node, "head", where), f"{where}.head", kind=Head, provided=HEAD_PROVIDED)
    return partial(body, head=head)


def optimizer_part(config: DictConfig, where: str) -> Callable[..., torch.optim.Optimizer]:
    """What `optimizer.generator` or `.discriminator` describes."""
    node = section(config, where)
    optional = [key for key in ("fused", "recorded") if takes(lookup(OPTIMIZERS, node, where), key)]
    return part(OPTIMIZERS, node, where, provided=("parameters", *optional))


def given_beside_logits(discriminator: DictConfig) -> tuple[str, ...]:
    """The fields of `DiscriminatorOutput`, beside `logits`, that what `model.discriminator` describes fills."""
    where = "model.discriminator"
    body: Any = lookup(DISCRIMINATORS, discriminator, where, Discriminator)
    head: Any = (
        lookup(HEADS, section(discriminator, "head", where), f"{where}.head", Head) if takes(body, "head") else body
    )
    gives: tuple[str, ...] = head.gives
    return gives


def build_generator(node: DictConfig, *, num_classes: int, image_size: int) -> Generator:
    """The generator that `model.generator` describes."""
    return generator_part(node)(num_classes=num_classes, image_size=image_size)


def build_discriminator(node: DictConfig, *, num_classes: int, image_size: int) -> Discriminator:
    """The discriminator that `model.discriminator` describes, with its head."""
    return discriminator_part(node)(num_classes=num_classes, image_size=image_size)


def build_data(node: DictConfig) -> ImageSet:
    """Load the images that `data` describes."""
    images: ImageSet = part(SOURCES, node, "data")().load()
    return images


def splits_of(node: DictConfig, images: ImageSet, wanted: Sequence[str] = SPLITS) -> list[ImageSet]:
    """The splits that a data set can be scored against, also those that `images` does not hold.

    Args:
        node: `data` in the configuration.
        images: what was loaded from it.
        wanted: which splits.

    Returns:
        One set for each split that exists; `images` alone where none does.
    """
    found = []
    for split in wanted:
        if images.splits == (split,):
            found.append(images)
            continue
        try:
            found.append(build_data(cast(DictConfig, OmegaConf.merge(node, {"splits": [split]}))))
        except UserError as error:
            log.info("not scored against a split called %s: %s", split, error)
    return found or [images]


def build_extractor(node: DictConfig, *, device: torch.device) -> FeatureExtractor:
    """The feature network that `evaluator` names, with its weights."""
    extractor: FeatureExtractor = _extractor_part(node)(device=device)
    extractor.require_complete()
    return extractor


def _extractor_part(node: DictConfig) -> Callable[..., FeatureExtractor]:
    known = {"none": NoEvaluator, **EXTRACTORS}  # an unknown name is reported with all choices
    return part(known, without(node, *EVALUATOR_OWN), "evaluator", provided=["device"])


def evaluator_part(node: DictConfig, *, data: DictConfig, device: torch.device) -> Callable[[ImageSet], Evaluator]:
    """What `evaluator` describes; takes the images that were loaded from `data`."""
    if node.get("name") == "none":
        nothing = part({"none": NoEvaluator}, node, "evaluator")

        def build_none(_: ImageSet) -> Evaluator:
            return cast(Evaluator, nothing())

        return build_none
    _extractor_part(node)  # checks its settings
    own = without(node, *(str(key) for key in node if key not in EVALUATOR_OWN))
    settings = arguments(FeatureEvaluator, own, "evaluator", provided=EVALUATOR_PROVIDED)

    def build_for(images: ImageSet) -> Evaluator:
        final_images = partial(splits_of, data, images)
        return FeatureEvaluator(
            extractor=build_extractor(node, device=device),
            images=images,
            final_images=final_images,
            table=METRICS,
            device=device,
            **settings,
        )

    return build_for
