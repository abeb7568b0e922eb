"""The plain PyTorch script that the benchmark measures against: finding it, building it, giving it cifargan's weights.

It is a script on purpose, readable without cifargan and importing nothing of it; so it is loaded by its path.
"""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from cifargan.config import plain
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.training.step import GANStep

# From cifargan's names of weights and vectors to the script's, where they differ.
_RENAMED = {
    ".parametrizations.weight.original": ".weight",
    ".parametrizations.weight.0.": ".",
    ".layer.": ".",  # a batch norm that ignores labels is wrapped here, and bare there
}


def reference_path() -> Path:
    """Where the script lies: inside the wheel, or in `scripts` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "bench" / "_reference.py"
    return shipped if shipped.is_file() else package.parents[1] / "scripts" / "reference.py"


@cache
def reference_module() -> ModuleType:
    """The script as a module.

    Raises:
        UserError: it is not there.
    """
    path = reference_path()
    if not path.is_file():
        raise UserError(f"the reference that cifargan bench measures against is missing: {path}; reinstall cifargan")
    spec = importlib.util.spec_from_file_location("cifargan_bench_reference", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pickling and copying look for its classes
    spec.loader.exec_module(module)
    return module


def presets() -> tuple[str, ...]:
    """The experiments that the script can train."""
    known: tuple[str, ...] = reference_module().PRESETS
    return known


def build_reference(
    config: DictConfig, *, images: ImageSet, device: torch.device, autocast: torch.dtype | None = None
) -> Any:
    """The script's `Trainer` for a configuration.

    Args:
        config: the composed configuration of one of `presets`, resolved.
        images: what to train on; moved to the device.
        device: where to train.
        autocast: the dtype of autocast; None for float32 throughout.
    """
    torch.manual_seed(config.seed)
    return reference_module().Trainer(
        plain(config),
        images.images.to(device),
        images.labels.to(device),
        num_classes=images.num_classes,
        autocast=autocast,
    )


def copy_weights(gan: GANStep, reference: Any) -> None:
    """Give a reference the weights, statistics and singular vectors of a gan's networks, the average's too.

    Raises:
        RuntimeError: a tensor is missing, superfluous or of another shape.
    """
    for source, target in (
        (gan.generator, reference.generator),
        (gan.discriminator, reference.discriminator),
        (gan.ema.generator, reference.ema),
    ):
        target.load_state_dict(renamed(source.state_dict()))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of cifargan's under the names of the script."""
    return {reference_name(name): value for name, value in state.items()}


def reference_name(name: str) -> str:
    """What the script calls the parameter or buffer that cifargan calls `name`."""
    for own, theirs in _RENAMED.items():
        name = name.replace(own, theirs)
    return name
