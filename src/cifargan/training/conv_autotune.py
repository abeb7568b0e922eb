"""Choose the faster form of the convolutions beside a change of size: timed once per device and network, and cached."""

import copy
import hashlib
import json
import logging
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.files import write_json
from cifargan.models.interface import Discriminator, DiscriminatorOutput, Generator
from cifargan.models.resampling import PooledConv2d, UpsampledConv2d, fold_
from cifargan.training.precision import Precision

log = logging.getLogger(__name__)

ROUNDS = 3
MAX_BATCH_ON_CPU = 8


def faster_forms(
    generator: Generator,
    discriminator: Discriminator,
    *,
    batch_size: int,
    channels_last: bool,
    precision: Precision,
    device: torch.device,
    file: Path,
) -> tuple[bool, bool]:
    """Time both forms of each network, forward and backward, where no earlier answer is cached.

    Leaves networks and random numbers as they are.

    Args:
        generator: on `device`.
        discriminator: on `device`.
        batch_size: images in one forward pass.
        channels_last: the memory layout to time under.
        precision: the number format to time in.
        device: where training runs.
        file: JSON with earlier answers; added to.

    Returns:
        Whether folding pays for upsampling, and whether it pays for pooled convolutions.
    """
    n = min(batch_size, MAX_BATCH_ON_CPU) if device.type == "cpu" else batch_size
    y = torch.zeros(n, dtype=torch.int64, device=device)
    z = torch.zeros(n, generator.latent_dim, device=device)
    x = torch.zeros(n, 3, generator.image_size, generator.image_size, device=device)
    known, answers = _read(file), []
    for network, inputs, layer in ((generator, z, UpsampledConv2d), (discriminator, x, PooledConv2d)):
        if not any(isinstance(module, layer) for module in network.modules()):
            answers.append(False)
            continue
        key = _key(network, n, channels_last=channels_last, precision=precision, device=device)
        if key not in known:
            known[key] = _speed_up(network, inputs, y, channels_last=channels_last, precision=precision, device=device)
            _write(file, known)
        answers.append(known[key] > 1.0)
    return answers[0], answers[1]


def _key(network: nn.Module, n: int, *, channels_last: bool, precision: Precision, device: torch.device) -> str:
    """What the answer depends on."""
    shapes = [(name, tuple(weight.shape)) for name, weight in network.named_parameters()]
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.processor()}"
    layout = "channels_last" if channels_last else "contiguous"
    return f"{where} torch {torch.__version__} {precision.name} {layout} batch {n} {type(network).__name__} {digest}"


def _speed_up(
    network: nn.Module, x: Tensor, y: Tensor, *, channels_last: bool, precision: Precision, device: torch.device
) -> float:
    """How many times as long the plain form takes as the folded one: the median over alternating passes."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    twin = copy.deepcopy(network).to(memory_format=memory_format)

    def seconds(folded: bool) -> float:
        fold_(twin, up=folded, down=folded)
        _wait(device)
        started = time.perf_counter()
        with precision.autocast():
            output = twin(x, y)
        logits_or_images = output.logits if isinstance(output, DiscriminatorOutput) else output
        torch.autograd.backward(logits_or_images.float().sum())
        _wait(device)
        return time.perf_counter() - started

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # for dropout
        for folded in (False, True):
            seconds(folded)
        return statistics.median(seconds(False) / seconds(True) for _ in range(ROUNDS))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read(file: Path) -> dict[str, float]:
    """Earlier answers; none where the file is missing or damaged."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, float)} if isinstance(known, dict) else {}


def _write(file: Path, known: dict[str, float]) -> None:
    try:
        write_json(file, known)
    except UserError as error:
        log.info("the choice of convolutions could not be stored (%s); the next run times it again", error)
