"""What is measured: an experiment's configuration, random images, and the plain PyTorch script scripts/reference.py."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.config import plain
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError, did_you_mean
from cifargan.schema import conf_dir
from cifargan.training.step import GANStep

NUM_CLASSES = 10
_WIDTHS = ("channels", "base_channels", "stem_channels")
_WIDTH_STEP = 8  # self-attention works on an eighth of the channels
# From cifargan's names of parameters and buffers to the script's, where they differ.
_RENAMED = {
    ".parametrizations.weight.original": ".weight",
    ".parametrizations.weight.0.": ".",
    ".layer.": ".",  # cifargan wraps a batch norm that ignores labels
}


def compose(preset: str, *overrides: str) -> DictConfig:
    """The resolved configuration of `cifargan train experiment=PRESET OVERRIDES`.

    Raises:
        UserError: there is no such preset.
    """
    shipped = sorted(path.stem for path in Path(conf_dir(), "experiment").glob("*.yaml"))
    if preset not in shipped:
        hint = did_you_mean(preset, shipped) or f"; choose from {', '.join(shipped)}"
        raise UserError(f"cifargan bench {preset}: no such preset{hint}")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        arguments = [f"experiment={preset}", "evaluator=none", *overrides]
        return OmegaConf.create(plain(hydra.compose("train", arguments)))


def narrowed(config: DictConfig, width: int | None) -> DictConfig:
    """A copy whose generator has `width` channels, a multiple of 8, and all other layers in proportion; None: as it is."""
    config = config.copy()
    if width is None:
        return config
    own = config.model.generator
    factor = width / next(own[key] for key in _WIDTHS if key in own)
    for part in (config.model.generator, config.model.discriminator):
        for key in (key for key in _WIDTHS if key in part):
            part[key] = _scaled(part[key], factor)
    return config


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, int):
        return max(_WIDTH_STEP, round(value * factor / _WIDTH_STEP) * _WIDTH_STEP)
    return [_scaled(each, factor) for each in value]


def random_images(n: int, *, image_size: int) -> ImageSet:
    """Noise with labels of ten classes: the content of an image does not change the time of a step."""
    generator = torch.Generator().manual_seed(0)
    return ImageSet(
        images=torch.randint(256, (n, 3, image_size, image_size), dtype=torch.uint8, generator=generator),
        labels=torch.randint(NUM_CLASSES, (n,), generator=generator),
        classes=tuple(str(label) for label in range(NUM_CLASSES)),
        name="noise",
        splits=("train",),
        flip=True,
        fingerprint="noise",
    )


def reference_path() -> Path:
    """Where the script is: in the wheel beside this file, or in `scripts` of a checkout."""
    shipped = Path(__file__).with_name("_reference.py")
    return shipped if shipped.is_file() else Path(__file__).resolve().parents[3] / "scripts" / "reference.py"


@cache
def reference_module() -> ModuleType:
    """The script as a module. It is no part of the package, since it must be readable without cifargan.

    Raises:
        UserError: the file is missing.
    """
    path = reference_path()
    spec = importlib.util.spec_from_file_location("cifargan_bench_reference", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"the script that cifargan bench measures against is missing: {path}; reinstall cifargan")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where copying looks for its classes
    spec.loader.exec_module(module)
    return module


def build_reference(
    config: DictConfig, *, images: ImageSet, device: torch.device, autocast: torch.dtype | None = None
) -> Any:
    """The script's `Trainer` for one of its presets.

    Args:
        config: the resolved configuration.
        images: what to train on; moved to the device.
        device: where to train.
        autocast: the dtype of autocast; None: no autocast.
    """
    torch.manual_seed(config.seed)
    tensors = images.images.to(device), images.labels.to(device)
    return reference_module().Trainer(plain(config), *tensors, num_classes=images.num_classes, autocast=autocast)


def copy_weights(gan: GANStep, reference: Any) -> None:
    """Copy the parameters and buffers of cifargan's networks and average to the script's.

    Raises:
        RuntimeError: a tensor is missing, unexpected or of another shape.
    """
    for source, target in (
        (gan.generator, reference.generator),
        (gan.discriminator, reference.discriminator),
        (gan.ema.generator, reference.ema),
    ):
        target.load_state_dict({reference_name(name): value for name, value in source.state_dict().items()})


def reference_name(name: str) -> str:
    """The script's name of one of cifargan's parameters or buffers."""
    for own, theirs in _RENAMED.items():
        name = name.replace(own, theirs)
    return name
