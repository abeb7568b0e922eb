"""Build the two networks and everything that one training step needs, from the parsed configuration."""

from functools import partial

import torch

from cifargan.config import Parts
from cifargan.data.cache import cache_dir
from cifargan.data.sources import ImageSet
from cifargan.data.stream import ImageStream
from cifargan.distributed import on_rank_zero, world_size
from cifargan.errors import UserError
from cifargan.training.conv_autotune import faster_forms
from cifargan.training.finetune import freeze_first
from cifargan.training.optimizers import FUSED
from cifargan.training.precision import Precision
from cifargan.training.rng import be_deterministic, seed_everything, use_tf32
from cifargan.training.speed import Switches
from cifargan.training.step import GANStep


def build_gan(
    parts: Parts,
    *,
    images: ImageSet,
    device: torch.device | None = None,
    switches: Switches | None = None,
    before: Switches | None = None,
) -> GANStep:
    """The two networks and everything that trains them against each other.

    Args:
        parts: the parsed configuration.
        images: what to train on.
        device: where; None: as `device` says.
        switches: what makes it fast; None: as `trainer.speed` and its neighbours say.
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
            "class, or choose an unconditional one: model=dcgan, dcgan_dense, dcgan64 or sagan"
        )
    discriminator = parts.discriminator(**shape).to(device)
    objective = parts.objective().to(device)
    objective.require_fits(discriminator)
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
            fusible=all(parts.config.optimizer[name].name in FUSED for name in parts.optimizers),
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
        parts.optimizers[name](parameters=list(network.parameters()), fused=switches.fused, recorded=switches.graph)
        for name, network in (("generator", generator), ("discriminator", discriminator))
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
        switches=switches,
    )
