"""Everything that a run needs, from its resolved configuration."""

from omegaconf import DictConfig

from cifargan.agreement import leads, one_before_others
from cifargan.build.check import check
from cifargan.build.device import select_device
from cifargan.build.gan import build_gan
from cifargan.build.parts import build_data, build_discriminator, build_evaluator, build_generator
from cifargan.build.settings import build_freezing, build_logging, plain
from cifargan.data.sources import ImageSet
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

NO_STATE = "the checkpoint lacks parts of what a run is gone on with: it is damaged, or none of ours; try an older one"


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
    gan = build_gan(
        config, images=images, device=device, before=None if state is None else remembered(state["switches"])
    )
    if state is not None:
        # Before the tracker opens the run's files.
        with refusing(NO_STATE):
            gan.load_state(state)
    if start is not None:
        take_over(start, gan, config, images)
    # Late, as its features can take a while, and what else is wrong should be told before. It draws no random numbers.
    evaluator = one_before_others(
        lambda: build_evaluator(config.evaluator, images=images, data=config.data, device=device)
    )
    trainer = Trainer(
        gan=gan,
        images=images,
        evaluator=evaluator,
        tracker=build_tracker(config, directory, first_step=gan.step) if leads() else Tracking(directory),
        checkpoints=CheckpointStore(directory.checkpoints, keep=gan.schedule.keep),
        config=plain(config),
    )
    if state is not None:
        with refusing(NO_STATE):
            trainer.load_state(state)
    return trainer


def take_over(start: Start, gan: GANStep, config: DictConfig, images: ImageSet) -> None:
    """Give the networks of a new gan the weights that it is to start from.

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
        start.apply(gan, twins)


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
        events=EventWriter if "tensorboard" in chosen else NoEvents,
        loggers=loggers,
    )
