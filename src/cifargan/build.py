"""Build the trainer of a run and everything in it, from the parsed configuration."""

from functools import partial

import torch

from cifargan.config import Parts, plain
from cifargan.data.cache import cache_dir
from cifargan.data.sources import ImageSet
from cifargan.data.stream import ImageStream
from cifargan.distributed import is_rank_zero, local_rank_zero_first, on_rank_zero, world_size
from cifargan.errors import UserError
from cifargan.registry import LOGGERS
from cifargan.runs.checkpoint import CheckpointStore, State, require_classes
from cifargan.runs.directory import RunDirectory
from cifargan.schema import takes
from cifargan.training.conv_autotune import faster_forms
from cifargan.training.finetune import Start, freeze_first
from cifargan.training.log import RunLog
from cifargan.training.loggers import ImageFiles, JSONLines
from cifargan.training.loop import Trainer
from cifargan.training.precision import Precision
from cifargan.training.speed import SpeedOptions, remembered
from cifargan.training.state import be_deterministic, seed_everything, use_tf32
from cifargan.training.step import GANStep
from cifargan.untrusted import readable, refusing

NO_STATE = "the checkpoint lacks parts of a run's state: it is damaged, or not a cifargan checkpoint; try an older one"


def build_gan(
    parts: Parts,
    *,
    images: ImageSet,
    device: torch.device | None = None,
    speed: SpeedOptions | None = None,
    before: SpeedOptions | None = None,
) -> GANStep:
    """The two networks and everything that trains them against each other.

    Args:
        parts: the parsed configuration.
        images: what to train on.
        device: where; None: as `device` says.
        speed: what makes it fast; None: as `trainer.speed` and its neighbours say.
        before: what a resumed run had been given.

    Raises:
        UserError: the parts do not go together.
    """
    root, schedule = parts.root, parts.schedule
    device = device or parts.device
    be_deterministic(root.deterministic)
    precision = Precision(root.precision, device)
    # From here on the order decides which random numbers a network starts from.
    seed_everything(root.seed)
    shape = {"num_classes": images.num_classes, "image_size": images.image_size}
    generator = parts.generator(**shape).to(device)
    if generator.num_classes and images.num_classes == 1:
        raise UserError(
            f"the data have one class ({images.classes[0]}) and this model is conditional: add a folder for each "
            "class, or choose an unconditional one, such as model=dcgan"
        )
    discriminator = parts.discriminator(**shape).to(device)
    objective = parts.objective().to(device)
    objective.require_fits(discriminator)
    if speed is None:
        times = partial(
            faster_forms,
            generator,
            discriminator,
            batch_size=schedule.micro_batch // world_size(),
            precision=precision,
            device=device,
            file=cache_dir() / "convolutions.json",
        )
        # The first decides for all: two timings could end otherwise.
        decide = partial(
            parts.speed.resolve,
            device,
            deterministic=root.deterministic,
            scaled=precision.name == "fp16",
            fusible=all(takes(optimizer, "fused") for optimizer in parts.optimizers.values()),
            recordable=all(takes(optimizer, "recorded") for optimizer in parts.optimizers.values()),
            faster_forms=times,
            before=before,
            alone=world_size() == 1,
        )
        speed = on_rank_zero(decide)
    use_tf32(speed.tf32)
    for network in (generator, discriminator):
        speed.prepare(network)
    freeze_first(discriminator, parts.extras.freeze_d)
    wanted = {"fused": speed.fused, "recorded": speed.graph}
    g_optimizer, d_optimizer = (
        make(parameters=list(network.parameters()), **{key: on for key, on in wanted.items() if takes(make, key)})
        for make, network in (
            (parts.optimizers["generator"], generator),
            (parts.optimizers["discriminator"], discriminator),
        )
    )
    return GANStep(
        generator=generator,
        discriminator=discriminator,
        objective=objective,
        augment=parts.augment().to(device),
        stream=ImageStream(images=images, batch_size=schedule.micro_batch, device=device, seed=root.seed),
        g_optimizer=g_optimizer,
        d_optimizer=d_optimizer,
        ema=parts.ema(generator),
        precision=precision,
        schedule=schedule,
        num_classes=images.num_classes,
        device=device,
        speed=speed,
    )


def build_trainer(
    parts: Parts, directory: RunDirectory, *, state: State | None = None, start: Start | None = None
) -> Trainer:
    """Everything that a run needs.

    Args:
        parts: the parsed configuration.
        directory: where the run writes.
        state: the checkpoint to resume from.
        start: the networks that a new run starts from.

    Raises:
        UserError: data or weights that cannot be had; a checkpoint that does not fit. The run's files are then as they
            were.
    """
    images = local_rank_zero_first(parts.load_data)
    if state is not None:
        # Before the networks, whose shapes other classes change as well.
        with refusing(NO_STATE):
            require_classes(state, images.classes)
            remembered(state["speed"])
    if start is not None:
        start.require_size(images.image_size)
    gan = build_gan(parts, images=images, before=None if state is None else remembered(state["speed"]))
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
        tracker=build_log(parts, directory, first_step=gan.step) if is_rank_zero() else RunLog(directory),
        checkpoints=CheckpointStore(directory.checkpoints, keep=gan.schedule.keep),
        config=plain(parts.config),
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


def build_log(parts: Parts, directory: RunDirectory, *, first_step: int) -> RunLog:
    """The run log with the loggers that the configuration names."""
    settings = plain(parts.config)
    kinds = [JSONLines, ImageFiles, *(LOGGERS[name] for name in dict.fromkeys(parts.extras.loggers))]
    loggers = [kind(directory, settings) for kind in kinds]
    return RunLog(directory, loggers, steps=parts.schedule.steps, first_step=first_step)
