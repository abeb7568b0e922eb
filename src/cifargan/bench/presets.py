"""Which configuration is measured: a shipped experiment, at full width or narrowed, on random images."""

from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.config import plain
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError, did_you_mean
from cifargan.schema import conf_dir

NUM_CLASSES = 10
_WIDTHS = ("channels", "base_channels", "stem_channels")
_GRAIN = 8  # self-attention works on an eighth of the channels


def compose(preset: str, *overrides: str) -> DictConfig:
    """The resolved configuration that `cifargan train experiment=PRESET OVERRIDES` would train.

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
    """A copy whose generator has `width` channels, and all other layers as many as keeps their proportions.

    Args:
        config: a composed configuration.
        width: of the generator, rounded to a multiple of 8; None keeps all widths.
    """
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
        return max(_GRAIN, round(value * factor / _GRAIN) * _GRAIN)
    return [_scaled(each, factor) for each in value]


def random_images(n: int, *, image_size: int) -> ImageSet:
    """Noise of ten classes: nothing in a training step is faster or slower for what is in a picture."""
    generator = torch.Generator().manual_seed(0)
    return ImageSet(
        images=torch.randint(256, (n, 3, image_size, image_size), dtype=torch.uint8, generator=generator),
        labels=torch.randint(NUM_CLASSES, (n,), generator=generator),
        classes=tuple(str(label) for label in range(NUM_CLASSES)),
        name="noise",
        splits=("train",),
        flip=True,
        fingerprint="noise",  # hashing would take longer than a round
    )
