"""The trained networks in a checkpoint, or in a file that `cifargan export` wrote.

An exported file holds one generator, with spectral norm divided out of its weights, and a card: its settings as data.
Both kinds of file are untrusted and go through the same checks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from cifargan.errors import UserError
from cifargan.runs.checkpoint import KIND as CHECKPOINT
from cifargan.runs.checkpoint import State, state_of
from cifargan.schema import from_file
from cifargan.tensor_file import read
from cifargan.untrusted import readable, refusing, require_names

EXPORTED = "generator"  # the kind of an exported file
FORMAT = 1  # of an exported file
MAX_IMAGE_SIZE = 1024
DTYPES = (torch.float32, torch.int64)  # of weights and counters

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file says of its networks, checked.

    Attributes:
        config: the configuration of its run; nothing in it is looked up.
        classes: class names that can stand in file names.
        image_size: H = W of its images.
        step: its training step.
    """

    config: DictConfig
    classes: tuple[str, ...]
    image_size: int
    step: int


@dataclass(frozen=True, kw_only=True)
class TrainedNetworks:
    """What a file holds of trained networks, checked.

    Attributes:
        path: the file.
        about: its settings, classes, size of images and training step.
        weights: state dicts by kind: `ema` and `raw` of the generator, and `discriminator`; an exported file has one.
        plain: whether spectral norm is divided out of them.
        speed: the form of the networks in training, by name.
    """

    path: Path
    about: Description
    weights: dict[str, Weights]
    plain: bool
    speed: dict[str, Any]

    def of(self, kind: str) -> Weights:
        """The weights of one kind.

        Raises:
            UserError: the file does not hold them.
        """
        if kind not in self.weights:
            raise UserError(
                f"{readable(str(self.path))} holds the weights {', '.join(self.weights)}, not {kind}: name the run instead"
            )
        return self.weights[kind]


def read_networks(path: Path) -> TrainedNetworks:
    """Read an untrusted checkpoint or exported file.

    Raises:
        UserError: it is missing, damaged, of a format that this version does not read, or not a file of cifargan.
    """
    where = readable(str(path))
    tensors, description = read(path)
    if description.get("kind") == CHECKPOINT:
        return networks_of(state_of(tensors, description, path), path)
    if description.get("kind") != EXPORTED or description.get("format") != FORMAT:
        found = readable(f"{description.get('kind')} {description.get('format')}", limit=40)
        raise UserError(f"{where} has format '{found}'; this version reads {EXPORTED} {FORMAT}")
    with refusing(f"{where} is damaged or not a generator of cifargan: export it again"):
        kind, speed = description["weights"], dict(description["speed"])
        if kind not in ("ema", "raw"):
            raise ValueError("not a kind of weights")
        about = describe(description, path)
    weights = {kind: _checked(tensors, where)}
    return TrainedNetworks(path=path, about=about, weights=weights, plain=True, speed=speed)


def networks_of(state: State, path: Path) -> TrainedNetworks:
    """The networks in the state of a checkpoint that was read from `path`.

    Raises:
        UserError: they are missing, or described wrongly.
    """
    where = readable(str(path))
    with refusing(f"{where} does not hold the networks of a run: it is damaged or not a checkpoint of cifargan"):
        about, speed = describe(state, path), dict(state["speed"])
        weights = {
            "ema": _checked(state["ema"], where),
            "raw": _checked(state["generator"], where),
            "discriminator": _checked(state["discriminator"], where),
        }
    return TrainedNetworks(path=path, about=about, weights=weights, plain=False, speed=speed)


def _checked(weights: Any, where: str) -> Weights:
    """Weights that are a state dict of tensors of the usual types.

    Raises:
        UserError: they are not.
    """
    if isinstance(weights, dict) and all(isinstance(t, Tensor) and t.dtype in DTYPES for t in weights.values()):
        return weights
    raise UserError(f"{where} is damaged or not a file of cifargan: its weights are not float32 tensors")


def describe(state: Mapping[str, Any], path: Path) -> Description:
    """Check and give what decides the networks of a file.

    Raises:
        UserError: it is missing, of the wrong kind, or refers to what is on this machine.
    """
    where = readable(str(path))
    with refusing(f"{where} does not say what its networks are: it is damaged or not a file of cifargan"):
        config = from_file(state["config"], where)
        classes, step, image_size = tuple(state["classes"]), state["step"], config.data.image_size
        if not all(isinstance(name, str) for name in classes) or type(step) is not int or step < 0:
            raise TypeError("classes are texts, a step is a number")
        if type(image_size) is not int or not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise TypeError("not a size of images")
    require_names(classes, where)
    return Description(config=config, classes=classes, image_size=image_size, step=step)
