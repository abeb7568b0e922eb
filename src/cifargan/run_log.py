"""What a run says: its train.log, the terminal, and the lines before the first step."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import nn

from cifargan.config import Parts
from cifargan.device import unused_gpu
from cifargan.distributed import world_size
from cifargan.explain import explain
from cifargan.runs.provenance import device_name
from cifargan.training.loop import Trainer


class RunLog(MemoryHandler):
    """Holds back what is logged until the folder holds a run, so that a failed start writes nothing.

    Args:
        path: the file; made by the first line, appended to if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.file = logging.FileHandler(path, encoding="utf-8", delay=True)
        self.file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        # A line that a full disk does not take is on the terminal all the same.
        self.file.handleError = lambda record: None  # type: ignore[method-assign] # noqa: ARG005
        super().__init__(sys.maxsize, flushLevel=sys.maxsize, target=self.file, flushOnClose=False)

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)
        self.close()
        self.file.close()

    def begin(self) -> None:
        """Write what was held back, and from now on every line at once."""
        self.flush()
        self.capacity = 1

    def error(self, error: Exception) -> None:
        """Note how the run failed; the terminal gets the error elsewhere."""
        message = explain(error) or "".join(traceback.format_exception(error)).rstrip()
        self.handle(logging.makeLogRecord({"levelno": logging.ERROR, "levelname": "ERROR", "msg": message}))


@contextmanager
def terminal_log(*, alone: bool = False) -> Iterator[None]:
    """While entered, log lines from INFO on go to stderr, unless something else receives log lines already.

    Args:
        alone: whether stderr is the only place meanwhile, whatever else there is.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    if alone or not handlers:
        terminal = logging.StreamHandler()
        terminal.setFormatter(logging.Formatter("%(message)s"))
        root.handlers[:] = [terminal]
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def preflight(parts: Parts, trainer: Trainer, directory: Path) -> list[str]:
    """What is about to be trained, in lines: data, networks, objective, updates, device, memory."""
    config, images, schedule, gan = parts.config, trainer.images, trainer.schedule, trainer.gan
    millions = [f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M" for net in (gan.generator, gan.discriminator)]
    model, g, d = config.model, config.optimizer.generator, config.optimizer.discriminator
    g_rate, d_rate = (optimizer.param_groups[0]["lr"] for optimizer in (gan.g_optimizer, gan.d_optimizer))
    normalisers = [name for name in ("spectral_norm", "batch_norm") if model.discriminator.get(name, False)]
    head = f"{model.discriminator.head.name} head" if "head" in model.discriminator else "its own head"
    together = f"{world_size()} processes, each " if world_size() > 1 else ""
    idle = unused_gpu() if gan.device.type == "cpu" and config.device == "auto" else None
    return [
        f"run      {directory}",
        f"data     {images.name} {'+'.join(images.splits)}: {len(images.images):,} images, {images.num_classes} classes, "
        f"{images.image_size}x{images.image_size}, flip {'on' if images.flip else 'off'}",
        f"model    G {model.generator.name} {millions[0]}, D {model.discriminator.name} {millions[1]} "
        f"({head}, {' and '.join(normalisers) or 'no normaliser'})",
        f"loss     {config.loss.name}, regularizer {', '.join(config.regularizer) or 'none'}, augment {config.augment.name}",
        f"scores   {trainer.scoring.evaluator.plan}",
        f"update   {schedule.d_steps} D per G, batch {schedule.batch_size}, G {g.name} lr {g_rate:g}, "
        f"D {d.name} lr {d_rate:g}, EMA {gan.ema.decay:g}",
        f"device   {together}{device_name(gan.device)}, {gan.precision.name}, steps {trainer.step:,} to {schedule.steps:,}",
        *([f"gpu      not used: {idle}"] if idle else []),
        f"memory   {_memory(trainer)}",
        f"speed    {', '.join(gan.speed.names()) or 'the plain loop'}",
    ]


def _memory(trainer: Trainer) -> str:
    """What lies on the device all the time, and how much is free there, without the activations of a batch."""
    gan = trainer.gan
    networks = sum(_size(network) for network in (gan.generator, gan.discriminator, gan.ema.generator))
    line = f"images {trainer.images.images.nbytes / 1e6:.2f} MB, networks and average {networks / 1e6:.2f} MB"
    if gan.device.type != "cuda":
        return line
    free, total = torch.cuda.mem_get_info(gan.device)
    return f"{line}; {free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def _size(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
