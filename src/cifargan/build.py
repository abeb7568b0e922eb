"""Configuration to objects. Names become classes here, through registries, and nowhere else.

A registry and never a dotted path: a config or a checkpoint that somebody was sent must not be able to run code.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from cifargan.agreement import leads, local_rank, on_first, one_before_others
from cifargan.config import Registry, arguments, lookup, section, without
from cifargan.data.cache import cache_dir
from cifargan.data.cifar10 import CIFAR10
from cifargan.data.digits import Digits
from cifargan.data.folder import Folder
from cifargan.data.sources import ImageSet
from cifargan.data.stream import ImageStream
from cifargan.errors import UserError, did_you_mean
from cifargan.evaluation.automatic import automatic
from cifargan.evaluation.dinov2 import DINOv2
from cifargan.evaluation.evaluator import Evaluator, FeatureEvaluator, NoEvaluator
from cifargan.evaluation.features import FeatureExtractor
from cifargan.evaluation.inception import Inception
from cifargan.evaluation.lite0 import EfficientNetLite0
from cifargan.models.biggan import BigGANDiscriminator, BigGANGenerator
from cifargan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from cifargan.models.dense import DenseDiscriminator, DenseGenerator
from cifargan.models.heads import AuxiliaryHead, EmbeddingHead, LinearHead, ProjectionHead
from cifargan.models.interface import Discriminator, Generator
from cifargan.objectives.adversarial import BCELoss, HingeLoss, WassersteinLoss
from cifargan.objectives.augment import DiffAugment
from cifargan.objectives.classification import D2DCE, CrossEntropy, NoClassification
from cifargan.objectives.regularizers import Consistency, LeCam, LeCamConsistency, NoRegularizer
from cifargan.parallel import processes
from cifargan.strangers import readable, refusing
from cifargan.training.checkpoint import CheckpointStore, State, require_classes
from cifargan.training.ema import WeightAverage
from cifargan.training.finetune import Start, freeze_first
from cifargan.training.folding import faster_forms
from cifargan.training.game import Game
from cifargan.training.loggers import CSVTable, Guarded, Logger, NoEvents
from cifargan.training.optimizers import adam, rmsprop
from cifargan.training.precision import Precision, PrecisionName
from cifargan.training.rng import be_deterministic, seed_everything, use_tf32
from cifargan.training.run_directory import RunDirectory
from cifargan.training.schedule import Schedule
from cifargan.training.services import MLflow, WandB
from cifargan.training.speed import Speed, Switches, remembered
from cifargan.training.sturdy import SturdyTracker
from cifargan.training.tracking import Tracking
from cifargan.training.trainer import Trainer

log = logging.getLogger(__name__)

SOURCES: Registry = {"cifar10": CIFAR10, "folder": Folder, "digits": Digits}
GENERATORS: Registry = {"dcgan": DCGANGenerator, "dense": DenseGenerator, "biggan": BigGANGenerator}
DISCRIMINATORS: Registry = {"dcgan": DCGANDiscriminator, "dense": DenseDiscriminator, "biggan": BigGANDiscriminator}
HEADS: Registry = {
    "linear": LinearHead,
    "projection": ProjectionHead,
    "auxiliary": AuxiliaryHead,
    "embedding": EmbeddingHead,
}
CLASSIFICATIONS: Registry = {"none": NoClassification, "cross_entropy": CrossEntropy, "d2dce": D2DCE}
LOSSES: Registry = {"bce": BCELoss, "hinge": HingeLoss, "wasserstein": WassersteinLoss}
REGULARIZERS: Registry = {
    "none": NoRegularizer,
    "lecam": LeCam,
    "cr": Consistency,
    "lecam_cr": LeCamConsistency,
}
AUGMENTS: Registry = {"none": nn.Identity, "diffaugment": DiffAugment}
OPTIMIZERS: Registry = {"adam": adam, "rmsprop": rmsprop}
EXTRACTORS: Registry = {
    "inception": Inception,
    "efficientnet_lite0": EfficientNetLite0,
    "dinov2": DINOv2,
    "auto": automatic,
}
LOGGERS: Registry = {"tensorboard": SummaryWriter, "csv": CSVTable, "wandb": WandB, "mlflow": MLflow}
LOGGER_EXTRAS = ("wandb", "mlflow")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings at the root of the configuration, beside the groups.

    Args:
        name: the folder of the run under `output_root`.
        seed: of everything that is drawn.
        device: where to train.
        precision: number format of the training step.
        deterministic: bit-equal runs, at some cost in speed.
        resume: the run that this one goes on with.
        init: the run, checkpoint or exported generator whose networks this one starts from.
        output_root: where runs lie.
    """

    name: str
    seed: int = 0
    device: str = "auto"
    precision: PrecisionName = "auto"
    deterministic: bool = False
    resume: str | None = None
    init: str | None = None
    output_root: str = "outputs"

    def __post_init__(self) -> None:
        """Reject a seed that some generator could not take."""
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: must lie between 0 and {2**32 - 1}")


@dataclass(frozen=True, kw_only=True)
class Critic:
    """The settings under `loss.critic`, to which the models' configs refer.

    Args:
        batch_norm: whether a discriminator may bring batch norm.
        spectral_norm: whether it may bring spectral norm.
    """

    batch_norm: bool
    spectral_norm: bool


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """What of the networks is not trained, beside the settings that `Schedule` and `Speed` know under `trainer.`.

    Args:
        freeze_d: blocks of the discriminator's body, from the image on, that stay as `init` has them.
    """

    freeze_d: int = 0

    def __post_init__(self) -> None:
        """Reject what cannot be counted."""
        if self.freeze_d < 0:
            raise UserError(f"trainer.freeze_d={self.freeze_d}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Logging:
    """Where a run's figures go beside metrics.jsonl, which is always written.

    Args:
        loggers: of `LOGGERS`.

    Raises:
        UserError: there is no such logger, or it is an extra that is not installed.
    """

    loggers: list[str] = field(default_factory=lambda: ["tensorboard", "csv"])

    def __post_init__(self) -> None:
        """Reject what would write nothing."""
        names = [str(name) for name in self.loggers]  # OmegaConf lets lists within the list pass
        where = f"trainer.loggers=[{','.join(readable(name) for name in names)}]"
        for name in names:
            if name not in LOGGERS:
                hint = did_you_mean(name, LOGGERS) or f"; choose from {', '.join(LOGGERS)}"
                raise UserError(f"{where}: {readable(name)}: no such logger{hint}")
            if name in LOGGER_EXTRAS and find_spec(name) is None:
                raise UserError(f"{where}: {name} is not installed: pip install 'cifargan[{name}]', or leave it out")


NO_STATE = "the checkpoint lacks parts of what a run is gone on with: it is damaged, or none of ours; try an older one"
HEAD_PROVIDED = ("in_features", "num_classes", "spectral_norm")
EVALUATOR_PROVIDED = ("extractor", "images", "final_images", "device")
EVALUATOR_OWN = ("every", "samples", "final_samples", "full", "batch_size", "warn_after", "stop_after", "target")
SPLITS = ("train", "test")
OPTIMIZER_PROVIDED = ("parameters", "fused", "recorded")
SPEED = tuple(Speed.__dataclass_fields__)
OPTIMIZER_PARTS = ("generator", "discriminator")
# A head that has an opinion on classes, and only that, needs a term to learn it by.
HEADS_FOR = {"none": ("linear", "projection"), "cross_entropy": ("auxiliary", "embedding"), "d2dce": ("embedding",)}
TRAINER_OTHERS = ("ema", "freeze_d", "loggers", *SPEED)  # what is under `trainer.` and not in `Schedule`
TRAINER_KEYS = (*(key for key in Schedule.__dataclass_fields__ if key != "fits_memory"), *TRAINER_OTHERS)
MODEL_PARTS = ("generator", "discriminator", "classification")
GROUPS = ("data", "augment", "regularizer", "evaluator", "optimizer", "trainer", "model", "loss")


def settings(config: DictConfig) -> Settings:
    """The checked root settings.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    known = {**dict.fromkeys(GROUPS), **Settings.__dataclass_fields__}
    for key in map(str, config):
        if key not in known:
            raise UserError(f"{key}: no such setting{did_you_mean(key, known)}")
    return Settings(**arguments(Settings, without(config, *GROUPS), ""))


def construct(registry: Registry, node: DictConfig, where: str, **provided: Any) -> Any:
    """Build what a node names, from its settings and from what the program provides."""
    constructor = lookup(registry, node, where)
    return constructor(**arguments(constructor, node, where, provided=provided), **provided)


def select_device(name: str) -> torch.device:
    """The device that a name stands for; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return _own_device(torch.device(kind)) if processes() > 1 else torch.device(kind)
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"device={name}: no such device; choose from auto, cuda, cuda:N, mps, cpu")
    device = torch.device(name)
    if processes() > 1:
        device = _own_device(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device={name}: CUDA devices that torch sees here: {count}; choose device=auto or device=cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: torch sees no MPS device here; choose device=auto or device=cpu")
    return device


def _own_device(device: torch.device) -> torch.device:
    """The GPU of this process, where several share the work.

    Raises:
        UserError: they would share a device as well.
    """
    if device.type == "cpu":
        return device
    if device.type == "mps" or device.index is not None:
        raise UserError(f"device={device}: several processes need a device each; choose device=cuda or device=cpu")
    return torch.device("cuda", local_rank())


def build_generator(node: DictConfig, *, num_classes: int, image_size: int) -> Generator:
    """The generator that `model.generator` describes."""
    generator: Generator = construct(
        GENERATORS, node, "model.generator", num_classes=num_classes, image_size=image_size
    )
    return generator


def build_discriminator(node: DictConfig, *, num_classes: int, image_size: int) -> Discriminator:
    """The discriminator that `model.discriminator` describes, with its head."""
    where = "model.discriminator.head"
    head = lookup(HEADS, node.head, where)
    factory = partial(head, **arguments(head, node.head, where, provided=HEAD_PROVIDED))
    discriminator: Discriminator = construct(
        DISCRIMINATORS,
        without(node, "head"),
        "model.discriminator",
        num_classes=num_classes,
        image_size=image_size,
        head=factory,
    )
    return discriminator


def build_data(node: DictConfig) -> ImageSet:
    """Load the images that `data` describes."""
    images: ImageSet = construct(SOURCES, node, "data").load()
    return images


def build_extractor(node: DictConfig, *, device: torch.device) -> FeatureExtractor:
    """The feature network that `evaluator` names, with its weights."""
    extractor: FeatureExtractor = construct(EXTRACTORS, without(node, *EVALUATOR_OWN), "evaluator", device=device)
    return extractor


def build_evaluator(node: DictConfig, *, images: ImageSet, data: DictConfig, device: torch.device) -> Evaluator:
    """The evaluator that `evaluator` describes; its networks and the features of `images` are ready afterwards."""
    if node.name == "none":
        return NoEvaluator()
    settings = arguments(FeatureEvaluator, _evaluator_own(node), "evaluator", provided=EVALUATOR_PROVIDED)
    return FeatureEvaluator(
        extractor=build_extractor(node, device=device),
        images=images,
        final_images=partial(splits_of, data, images),
        device=device,
        **settings,
    )


def splits_of(node: DictConfig, images: ImageSet, wanted: Sequence[str] = SPLITS) -> list[ImageSet]:
    """The splits that a data set can be scored against, those that it was not loaded with included.

    Args:
        node: `data` in the configuration.
        images: what was loaded by it.
        wanted: which splits.

    Returns:
        One set for each split there is; where there is none by such a name, `images` alone.
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


def _evaluator_own(node: DictConfig) -> DictConfig:
    """The settings under `evaluator.` that are not the extractor's."""
    return without(node, *(str(key) for key in node if key not in EVALUATOR_OWN))


def check(config: DictConfig) -> Settings:
    """Check every setting against the code that would receive it, and build nothing.

    Cheap, so that a typo is told before data are loaded.

    Raises:
        UserError: an unknown name or key, or a value of the wrong type.
    """
    for group in GROUPS:
        section(config, group)
    root = settings(config)
    select_device(root.device)
    shape = ("num_classes", "image_size")
    parts: list[tuple[Registry, str, tuple[str, ...], tuple[str, ...]]] = [  # and settings checked elsewhere
        (SOURCES, "data", (), ()),
        (GENERATORS, "model.generator", shape, ()),
        (DISCRIMINATORS, "model.discriminator", (*shape, "head"), ("head",)),
        (HEADS, "model.discriminator.head", HEAD_PROVIDED, ()),
        (CLASSIFICATIONS, "model.classification", (), ()),
        (LOSSES, "loss", (), ("critic",)),
        (REGULARIZERS, "regularizer", (), ()),
        (AUGMENTS, "augment", (), ()),
        (OPTIMIZERS, "optimizer.generator", OPTIMIZER_PROVIDED, ()),
        (OPTIMIZERS, "optimizer.discriminator", OPTIMIZER_PROVIDED, ()),
        ({"none": NoEvaluator, **EXTRACTORS}, "evaluator", ("device",), EVALUATOR_OWN),
    ]
    for registry, where, provided, elsewhere in parts:
        node = without(section(config, where), *elsewhere)
        arguments(lookup(registry, node, where), node, where, provided=provided)
    for where, known in (("optimizer", OPTIMIZER_PARTS), ("model", MODEL_PARTS), ("trainer", TRAINER_KEYS)):
        for key in map(str, section(config, where)):
            if key not in known:
                hint = did_you_mean(key, known) or f"; there are {', '.join(known)}"
                raise UserError(f"{where}.{key}: no such setting{hint}")
    class_term, head = config.model.classification.name, config.model.discriminator.head.name
    if head not in HEADS_FOR[class_term]:
        raise UserError(
            f"model.discriminator.head.name={head} does not go with model.classification.name={class_term}, which "
            f"needs {' or '.join(HEADS_FOR[class_term])}; model=acbiggan and model=reacgan set both"
        )
    arguments(Critic, section(config, "loss.critic"), "loss.critic")
    build_schedule(config)
    build_speed(config)
    build_logging(config)
    if build_freezing(config).freeze_d and root.init is None:
        raise UserError(
            f"trainer.freeze_d={config.trainer.freeze_d}: freezes what was trained before: set init=RUN too"
        )
    arguments(WeightAverage, section(config, "trainer.ema"), "trainer.ema", provided=["generator"])
    evaluator = NoEvaluator if config.evaluator.name == "none" else FeatureEvaluator
    arguments(evaluator, _evaluator_own(config.evaluator), "evaluator", provided=EVALUATOR_PROVIDED)
    return root


def build_trainer(
    config: DictConfig, directory: RunDirectory, *, state: State | None = None, start: Start | None = None
) -> Trainer:
    """Everything that a run needs, from its resolved configuration.

    Args:
        config: the composed configuration, without interpolations.
        directory: where the run writes.
        state: the checkpoint to go on from.
        start: the networks that a new run starts from.

    Raises:
        UserError: a setting that nothing understands; data or weights that cannot be had; a checkpoint that does not
            fit, in which case the run's files are as they were.
    """
    root = check(config)
    device = select_device(root.device)
    images = one_before_others(lambda: build_data(config.data))
    if state is not None:
        # Before the networks, whose shapes other classes change as well.
        with refusing(NO_STATE):
            require_classes(state, images.classes)
            remembered(state["switches"])
    if start is not None:
        start.require_size(images.image_size)
    game = build_game(
        config, images=images, device=device, before=None if state is None else remembered(state["switches"])
    )
    if state is not None:
        # Before the tracker opens the run's files.
        with refusing(NO_STATE):
            game.load_state(state)
    if start is not None:
        take_over(start, game, config, images)
    # Late, as its features can take a while, and what else is wrong should be told before. It draws no random numbers.
    evaluator = one_before_others(
        lambda: build_evaluator(config.evaluator, images=images, data=config.data, device=device)
    )
    trainer = Trainer(
        game=game,
        images=images,
        evaluator=evaluator,
        tracker=build_tracker(config, directory, first_step=game.step) if leads() else Tracking(directory),
        checkpoints=CheckpointStore(directory.checkpoints, keep=game.schedule.keep),
        config=plain(config),
    )
    if state is not None:
        with refusing(NO_STATE):
            trainer.load_state(state)
    return trainer


def take_over(start: Start, game: Game, config: DictConfig, images: ImageSet) -> None:
    """Give the networks of a new game the weights that it is to start from.

    Raises:
        UserError: they are of other networks, or none of ours; or there is nothing to freeze.
    """
    if build_freezing(config).freeze_d and start.discriminator is None:
        raise UserError(
            f"trainer.freeze_d={config.trainer.freeze_d}: {readable(str(start.path))} holds no discriminator, and a new "
            "one has to be trained: leave it out, or give a run as init="
        )
    twins = {
        "generator": lambda n: build_generator(config.model.generator, num_classes=n, image_size=images.image_size),
        "discriminator": lambda n: build_discriminator(
            config.model.discriminator, num_classes=n, image_size=images.image_size
        ),
    }
    with refusing(f"init={readable(str(start.path))} cannot be started from: it is damaged, or none of ours"):
        start.apply(game, twins)


def build_game(
    config: DictConfig,
    *,
    images: ImageSet,
    device: torch.device,
    switches: Switches | None = None,
    before: Switches | None = None,
) -> Game:
    """The two networks and all that plays them against each other.

    Args:
        config: the composed configuration, checked, without interpolations.
        images: what to train on.
        device: where.
        switches: what makes it fast; None: as `trainer.speed` and its neighbours say.
        before: what a run that goes on had been given.

    Raises:
        UserError: the parts do not go together.
    """
    root = settings(config)
    be_deterministic(root.deterministic)
    schedule = build_schedule(config)
    precision = Precision(root.precision, device)
    # From here on the order decides which random numbers a network starts from.
    seed_everything(root.seed)
    shape = {"num_classes": images.num_classes, "image_size": images.image_size}
    generator = build_generator(config.model.generator, **shape).to(device)
    if generator.num_classes and images.num_classes == 1:
        raise UserError(
            f"the data have one class ({images.classes[0]}) and this model is conditional: add a folder for each "
            "class, or choose an unconditional one: model=dcgan, dcgan_dense, dcgan64 or sagan"
        )
    discriminator = build_discriminator(config.model.discriminator, **shape).to(device)
    if switches is None:
        times = partial(
            faster_forms,
            generator,
            discriminator,
            batch_size=schedule.micro_batch // processes(),
            precision=precision,
            device=device,
            file=cache_dir() / "convolutions.json",
        )
        # The first decides for all: two timings could end otherwise.
        decide = partial(
            build_speed(config).switches,
            device,
            deterministic=root.deterministic,
            host_sees_gradients=precision.name == "fp16",
            faster_forms=times,
            before=before,
            alone=processes() == 1,
        )
        switches = on_first(decide)
    use_tf32(switches.tf32)
    for network in (generator, discriminator):
        switches.prepare(network)
    freeze_first(discriminator, build_freezing(config).freeze_d)
    g_optimizer, d_optimizer = (
        construct(
            OPTIMIZERS,
            node,
            f"optimizer.{name}",
            parameters=list(network.parameters()),
            fused=switches.fused,
            recorded=switches.graph,
        )
        for name, node, network in (
            ("generator", config.optimizer.generator, generator),
            ("discriminator", config.optimizer.discriminator, discriminator),
        )
    )
    ema = arguments(WeightAverage, config.trainer.ema, "trainer.ema", provided=["generator"])
    return Game(
        generator=generator,
        discriminator=discriminator,
        loss=construct(LOSSES, without(config.loss, "critic"), "loss"),
        regularizer=construct(REGULARIZERS, config.regularizer, "regularizer").to(device),
        classification=construct(CLASSIFICATIONS, config.model.classification, "model.classification"),
        augment=construct(AUGMENTS, config.augment, "augment"),
        stream=ImageStream(images=images, batch_size=schedule.micro_batch, device=device, seed=root.seed),
        g_optimizer=g_optimizer,
        d_optimizer=d_optimizer,
        ema=WeightAverage(generator, **ema),
        precision=precision,
        schedule=schedule,
        num_classes=images.num_classes,
        device=device,
        switches=switches,
    )


def build_schedule(config: DictConfig) -> Schedule:
    """How many updates of which size: what stands under `trainer.` beside the average and the speed."""
    node = without(section(config, "trainer"), *TRAINER_OTHERS)
    fits_memory = node.get("accumulate") == "auto"
    if fits_memory:
        node.accumulate = 1
    return Schedule(**arguments(Schedule, node, "trainer", provided=["fits_memory"]), fits_memory=fits_memory)


def build_freezing(config: DictConfig) -> Freezing:
    """What under `trainer.` says which weights are not trained."""
    others = [str(key) for key in config.trainer if key != "freeze_d"]
    return Freezing(**arguments(Freezing, without(config.trainer, *others), "trainer"))


def build_logging(config: DictConfig) -> Logging:
    """Where the figures go, of what is under `trainer.`."""
    others = [str(key) for key in config.trainer if key != "loggers"]
    return Logging(**arguments(Logging, without(config.trainer, *others), "trainer"))


def build_tracker(config: DictConfig, directory: RunDirectory, *, first_step: int) -> SturdyTracker:
    """What writes a run's figures and pictures; opens metrics.jsonl and TensorBoard's file."""
    chosen = build_logging(config).loggers
    settings = plain(config)
    loggers: list[Logger] = [CSVTable(directory)] if "csv" in chosen else []
    loggers += [Guarded(LOGGERS[name](directory, config=settings)) for name in LOGGER_EXTRAS if name in chosen]
    return SturdyTracker(
        directory,
        steps=config.trainer.steps,
        first_step=first_step,
        events=SummaryWriter if "tensorboard" in chosen else NoEvents,
        loggers=loggers,
    )


def build_speed(config: DictConfig) -> Speed:
    """The settings under `trainer.` that make a round fast."""
    others = [str(key) for key in config.trainer if key not in SPEED]
    return Speed(**arguments(Speed, without(config.trainer, *others), "trainer"))


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as dicts, lists and scalars, every interpolation resolved."""
    container = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return {str(key): value for key, value in container.items()}
