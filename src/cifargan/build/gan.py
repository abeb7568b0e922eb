"""The networks and all that plays them against each other."""

from functools import partial

import torch
from omegaconf import DictConfig

from cifargan.config import build_discriminator, build_generator, parse
from cifargan.data.cache import cache_dir
from cifargan.data.sources import ImageSet
from cifargan.data.stream import ImageStream
from cifargan.distributed import on_rank_zero, world_size
from cifargan.errors import UserError
from cifargan.registry import AUGMENTS, CLASSIFICATIONS, LOSSES, OPTIMIZERS, PENALTIES, construct
from cifargan.schema import arguments, without
from cifargan.training.conv_autotune import faster_forms
from cifargan.training.ema import WeightAverage
from cifargan.training.finetune import freeze_first
from cifargan.training.optimizers import FUSED
from cifargan.training.precision import Precision
from cifargan.training.rng import be_deterministic, seed_everything, use_tf32
from cifargan.training.speed import Switches
from cifargan.training.step import GANStep


def build_gan(
    config: DictConfig,
    *,
    images: ImageSet,
    device: torch.device,
    switches: Switches | None = None,
    before: Switches | None = None,
) -> GANStep:
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
    parts = parse(config)
    root, schedule = parts.root, parts.schedule
    be_deterministic(root.deterministic)
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
            batch_size=schedule.micro_batch // world_size(),
            precision=precision,
            device=device,
            file=cache_dir() / "convolutions.json",
        )
        # The first decides for all: two timings could end otherwise.
        decide = partial(
            parts.speed.switches,
            device,
            deterministic=root.deterministic,
            scaled=precision.name == "fp16",
            fusible=all(config.optimizer[player].name in FUSED for player in ("generator", "discriminator")),
            faster_forms=times,
            before=before,
            alone=world_size() == 1,
        )
        switches = on_rank_zero(decide)
    use_tf32(switches.tf32)
    for network in (generator, discriminator):
        switches.prepare(network)
    freeze_first(discriminator, parts.extras.freeze_d)
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
    return GANStep(
        generator=generator,
        discriminator=discriminator,
        loss=construct(LOSSES, without(config.loss, "critic"), "loss"),
        regularizer=construct(PENALTIES, config.regularizer, "regularizer").to(device),
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
