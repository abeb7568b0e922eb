"""The lines that say what is about to be trained, before it is."""

import torch
from omegaconf import DictConfig
from torch import nn

from cifargan.device import unused_gpu
from cifargan.distributed import world_size
from cifargan.runs.directory import RunDirectory
from cifargan.runs.provenance import device_name
from cifargan.training.trainer import Trainer


def preflight(config: DictConfig, trainer: Trainer, directory: RunDirectory) -> list[str]:
    """What is about to happen: data, networks, objective, updates, device, memory."""
    images, schedule, gan = trainer.images, trainer.schedule, trainer.gan
    millions = [f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M" for net in (gan.generator, gan.discriminator)]
    model, g, d = config.model, config.optimizer.generator, config.optimizer.discriminator
    g_rate, d_rate = (optimizer.param_groups[0]["lr"] for optimizer in (gan.g_optimizer, gan.d_optimizer))
    normalisers = [name for name in ("spectral_norm", "batch_norm") if model.discriminator.get(name, False)]
    together = f"{world_size()} processes, each " if world_size() > 1 else ""
    idle = unused_gpu() if gan.device.type == "cpu" and config.device == "auto" else None
    return [
        f"run      {directory.path}",
        f"data     {images.name} {'+'.join(images.splits)}: {len(images.images):,} images, {images.num_classes} classes, "
        f"{images.image_size}x{images.image_size}, flip {'on' if images.flip else 'off'}",
        f"model    G {model.generator.name} {millions[0]}, D {model.discriminator.name} {millions[1]} "
        f"({model.discriminator.head.name} head, {' and '.join(normalisers) or 'no normaliser'})",
        f"loss     {config.loss.name}, regularizer {', '.join(config.regularizer) or 'none'}, augment {config.augment.name}",
        f"scores   {trainer.scoring.evaluator.plan}",
        f"update   {schedule.d_steps} D per G, batch {schedule.batch_size}, G {g.name} lr {g_rate:g}, "
        f"D {d.name} lr {d_rate:g}, EMA {gan.ema.decay:g}",
        f"device   {together}{device_name(gan.device)}, {gan.precision.name}, steps {trainer.step:,} to {schedule.steps:,}",
        *([f"gpu      not used: {idle}"] if idle else []),
        f"memory   {_memory(trainer)}",
        f"speed    {', '.join(gan.switches.names()) or 'the plain loop'}",
    ]


def _memory(trainer: Trainer) -> str:
    """What is on the device all the time, without activations, and how much memory is free there."""
    gan = trainer.gan
    networks = sum(_size(network) for network in (gan.generator, gan.discriminator, gan.ema.generator))
    line = f"images {trainer.images.images.nbytes / 1e6:.2f} MB, networks and average {networks / 1e6:.2f} MB"
    if gan.device.type != "cuda":
        return line
    free, total = torch.cuda.mem_get_info(gan.device)
    return f"{line}; {free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def _size(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
