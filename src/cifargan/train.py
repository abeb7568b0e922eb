"""Everything that a run needs, from its resolved configuration."""

from omegaconf import DictConfig

from cifargan.build import build_gan
from cifargan.config import Parts, parse, plain
from cifargan.data.sources import ImageSet
from cifargan.distributed import is_rank_zero, local_rank_zero_first
from cifargan.errors import UserError
from cifargan.registry import LOGGER_EXTRAS, LOGGERS
from cifargan.runs.checkpoint import CheckpointStore, State, require_classes
from cifargan.runs.directory import RunDirectory
from cifargan.training.events import EventWriter, NoEvents
from cifargan.training.finetune import Start
from cifargan.training.log import SturdyTracker
from cifargan.training.loggers import CSVTable, Guarded, Logger
from cifargan.training.speed import remembered
from cifargan.training.step import GANStep
from cifargan.training.tracking import Tracking
from cifargan.training.trainer import Trainer
from cifargan.untrusted import readable, refusing

NO_STATE = "the checkpoint lacks parts of a run's state: it is damaged, or not a cifargan checkpoint; try an older one"


def build_trainer(
    config: DictConfig, directory: RunDirectory, *, state: State | None = None, start: Start | None = None
) -> Trainer:
    """Everything that a run needs, from its resolved configuration.

    Args:
        config: the composed configuration, without interpolations.
        directory: where the run writes.
        state: the checkpoint to resume from.
        start: the networks that a new run starts from.

    Raises:
        UserError: a setting that nothing understands; data or weights that cannot be had; a checkpoint that does not
            fit, in which case the run's files are as they were.
    """
    parts = parse(config)
    images = local_rank_zero_first(parts.load_data)
    if state is not None:
        # Before the networks, whose shapes other classes change as well.
        with refusing(NO_STATE):
            require_classes(state, images.classes)
            remembered(state["switches"])
    if start is not None:
        start.require_size(images.image_size)
    gan = build_gan(parts, images=images, before=None if state is None else remembered(state["switches"]))
    if state is not None:
        # Before the tracker opens the run's files.
        with refusing(NO_STATE):
            gan.load_state(state)
    if start is not None:
        take_over(start, gan, parts, images)
    # Late: its features can take a while, and any other error should come first. It draws no random numbers.
    evaluator = local_rank_zero_first(lambda: parts.evaluator(images))
    trainer = Trainer(
        gan=gan,
        images=images,
        evaluator=evaluator,
        tracker=build_tracker(parts, directory, first_step=gan.step) if is_rank_zero() else Tracking(directory),
        checkpoints=CheckpointStore(directory.checkpoints, keep=gan.schedule.keep),
        config=plain(config),
    )
    if state is not None:
        with refusing(NO_STATE):
            trainer.load_state(state)
    return trainer


def take_over(start: Start, gan: GANStep, parts: Parts, images: ImageSet) -> None:
    """Give the networks of a new GAN step the weights of `init`.

    Raises:
        UserError: they are of other networks, or damaged; or there is nothing to freeze.
    """
    where = readable(str(start.path))
    if parts.extras.freeze_d and start.discriminator is None:
        raise UserError(
            f"trainer.freeze_d={parts.extras.freeze_d}: {where} holds no discriminator, and a new one has to be trained: "
            "leave it out, or give a run as init="
        )
    twins = {
        "generator": lambda n: parts.generator(num_classes=n, image_size=images.image_size),
        "discriminator": lambda n: parts.discriminator(num_classes=n, image_size=images.image_size),
    }
    with refusing(f"init={where} cannot be started from: it is damaged, or not of cifargan"):
        start.apply(gan, twins)


def build_tracker(parts: Parts, directory: RunDirectory, *, first_step: int) -> SturdyTracker:
    """What writes a run's scalars and pictures; opens metrics.jsonl and TensorBoard's file."""
    chosen = parts.extras.loggers
    settings = plain(parts.config)
    loggers: list[Logger] = [CSVTable(directory)] if "csv" in chosen else []
    loggers += [Guarded(LOGGERS[name](directory, config=settings)) for name in LOGGER_EXTRAS if name in chosen]
    return SturdyTracker(
        directory,
        steps=parts.schedule.steps,
        first_step=first_step,
        events=EventWriter if "tensorboard" in chosen else NoEvents,
        loggers=loggers,
    )
