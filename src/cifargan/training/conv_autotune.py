"""Which form of the convolutions beside a change of size is faster here: timed once a device, and remembered."""

import json
import logging
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.files import write_json
from cifargan.models.interface import Discriminator, Generator
from cifargan.models.resampling import PooledConv2d, UpsampledConv2d
from cifargan.training.precision import Precision

log = logging.getLogger(__name__)

ROUNDS = 5
MAX_BATCH_ON_CPU = 8

_Layer: TypeAlias = UpsampledConv2d | PooledConv2d
_Place: TypeAlias = tuple[_Layer, tuple[int, ...]]  # a layer, and the shape of what it gets


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
    """Whether folding pays for upsampling and for pooled convolutions: forward and backward, on this device.

    Leaves networks and random numbers as they are.

    Args:
        generator: on `device`.
        discriminator: on `device`.
        batch_size: images in one forward pass.
        channels_last: the layout to time under.
        precision: the number format to time in.
        device: where training will run.
        file: JSON with earlier answers; added to.
    """
    z = torch.zeros(1, generator.latent_dim, device=device)
    y = torch.zeros(1, dtype=torch.int64, device=device)
    x = torch.zeros(1, 3, generator.image_size, generator.image_size, device=device)
    answers = []
    for network, inputs in ((generator, (z, y)), (discriminator, (x, y))):
        places = _places(network, inputs)
        if not places:
            answers.append(False)
            continue
        n = min(batch_size, MAX_BATCH_ON_CPU) if device.type == "cpu" else batch_size
        places = [(layer, (n, *shape[1:])) for layer, shape in places]
        key = " ".join(
            [
                _device_name(device),
                torch.__version__,
                precision.name,
                "channels_last" if channels_last else "contiguous",
            ]
            + [
                f"{'up' if isinstance(layer, UpsampledConv2d) else 'down'} to {layer.out_channels} from {shape}"
                for layer, shape in places
            ]
        )
        known = _read(file)
        if key not in known:
            ratio = _ratio(places, channels_last=channels_last, precision=precision, device=device)
            known[key] = ratio
            _remember(file, known)
        answers.append(known[key] > 1.0)
    return answers[0], answers[1]


@torch.no_grad()
def _places(network: nn.Module, inputs: tuple[Tensor, Tensor]) -> list[_Place]:
    """The layers that have two forms, one for each distinct shape, as one pass in eval mode meets them."""
    places: dict[tuple[object, ...], _Place] = {}

    def meet(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(layer, UpsampledConv2d | PooledConv2d):
            places[(layer.in_channels, layer.out_channels, args[0].shape)] = (layer, tuple(args[0].shape))

    hooks = [module.register_forward_pre_hook(meet) for module in network.modules()]
    was_training = network.training
    network.eval()
    try:
        network(*inputs)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return list(places.values())


def _ratio(places: Sequence[_Place], *, channels_last: bool, precision: Precision, device: torch.device) -> float:
    """How many times as long the plain forms take as the folded ones: the median over rounds that take turns."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    twins = []
    for layer, shape in places:
        with torch.random.fork_rng(devices=[]):  # a layer is drawn on the CPU
            # Not the layer's own class, which a parametrization may have replaced.
            kind = UpsampledConv2d if isinstance(layer, UpsampledConv2d) else PooledConv2d
            twin = kind(layer.in_channels, layer.out_channels)
        twin = twin.to(device, memory_format=memory_format)  # type: ignore[call-overload]
        x = torch.ones(shape, device=device).contiguous(memory_format=memory_format).requires_grad_()
        twins.append((twin, x))

    def seconds(folded: bool) -> float:
        _wait(device)
        started = time.perf_counter()
        for twin, x in twins:
            twin.folded = folded
            with precision.autocast():
                y = twin(x)
            torch.autograd.backward(y, torch.ones_like(y))
        _wait(device)
        return time.perf_counter() - started

    for folded in (False, True):
        seconds(folded)
    return statistics.median(seconds(False) / seconds(True) for _ in range(ROUNDS))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.processor()}"


def _read(file: Path) -> dict[str, float]:
    """Earlier answers; none where the file is missing or not ours."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, float)} if isinstance(known, dict) else {}


def _remember(file: Path, known: dict[str, float]) -> None:
    try:
        write_json(file, known)
    except UserError as error:
        log.info("the choice of convolutions could not be stored (%s); it is timed anew the next time", error)
