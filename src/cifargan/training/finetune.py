"""Fine-tuning: a new run starts from trained networks, with other images or other classes.

Weights whose shape depends on the number of classes are new. All others are loaded, the generator's average included.
Optimisers, random numbers and the step count are those of a new run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.models.interface import Discriminator
from cifargan.models.spectral import restart_power_iteration_
from cifargan.runs.networks import Description, TrainedNetworks, Weights
from cifargan.training.step import GANStep
from cifargan.untrusted import readable

NORMALISED = (
    ".parametrizations.weight."  # what stands between a layer and the parts of its spectrally normalised weight
)
ORIGINAL = "parametrizations.weight.original"


@dataclass(kw_only=True)
class Start:
    """What a fine-tuning starts from.

    Attributes:
        networks: those of a checkpoint, or of a file of `cifargan export`.
        new: the weights that are new because the number of classes differs, once `apply` has found them.
    """

    networks: TrainedNetworks
    new: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file that the networks come from."""
        return self.networks.path

    @property
    def about(self) -> Description:
        """What the file says of the networks."""
        return self.networks.about

    @property
    def discriminator(self) -> Weights | None:
        """The weights of the discriminator; None in an exported file, which holds a generator alone."""
        return self.networks.weights.get("discriminator")

    def facts(self) -> dict[str, Any]:
        """The facts for a run's provenance."""
        return {
            "path": str(self.path),
            "step": self.about.step,
            "classes": list(self.about.classes),
            "discriminator": self.discriminator is not None,
            "new": self.new,
        }

    def lines(self, classes: tuple[str, ...]) -> list[str]:
        """The lines of the log. `classes` are those of the new run."""
        found = [f"init     {self.path}, step {self.about.step:,}"]
        if self.discriminator is None:
            found.append("init     the file holds no discriminator: a new one is trained")
        if self.new:
            then = len(self.about.classes)
            found.append(f"init     new for {len(classes)} classes instead of {then}: {', '.join(self.new)}")
        elif classes != self.about.classes:
            found.append("init     other class names, the same number: each class starts from the one with its label")
        return found

    def require_size(self, image_size: int) -> None:
        """Check that the images have the size that these networks are for.

        Raises:
            UserError: they do not.
        """
        if image_size != self.about.image_size:
            size = self.about.image_size
            raise UserError(
                f"init={readable(str(self.path))} is of {size}x{size} images, the data are {image_size}x{image_size}: set "
                f"data.image_size={size}"
            )

    def apply(self, gan: GANStep, twins: Mapping[str, Callable[[int], nn.Module]]) -> None:
        """Load these weights into the networks of a new training step.

        Args:
            gan: at step 0.
            twins: for `generator` and `discriminator`, a function from a number of classes to such a network.

        Raises:
            UserError: the networks differ in more than classes.
        """
        then, plain = len(self.about.classes), self.networks.plain
        # An exported file holds one kind of weights, which stands for both.
        raw, ema = (self.networks.weights.get(kind) for kind in ("raw", "ema"))
        jobs: list[tuple[str, nn.Module, Weights | None]] = [
            ("generator", gan.generator, raw or ema),
            ("generator", gan.ema.generator, ema or raw),
            ("discriminator", gan.discriminator, self.discriminator),
        ]
        new: dict[str, None] = {}
        for name, network, weights in jobs:
            if weights is None:
                continue
            with torch.device("meta"):
                before = twins[name](then).state_dict()
            own = network.state_dict()
            taken = as_trained(weights, before) if plain else dict(weights)
            fresh = _of_classes(before, own)
            self._require_fits(taken, before, own, fresh, name, plain=plain)
            network.load_state_dict({key: own[key] if key in fresh else taken.get(key, own[key]) for key in own})
            if plain:
                restart_power_iteration_(network)
            new |= dict.fromkeys(f"{name}.{_shown(key)}" for key in own if key in fresh)
        self.new = list(new)

    def _require_fits(
        self, taken: Weights, before: Weights, own: Weights, fresh: set[str], name: str, *, plain: bool
    ) -> None:
        for key in [*own, *taken]:
            if plain and _is_vector(key):
                continue
            there = taken[key].shape if key in taken else None
            # What depends on classes must be as it was with the classes of then.
            wanted = before[key].shape if key in fresh else own[key].shape if key in own else None
            if there != wanted:
                says = [f"{tuple(shape)}" if shape is not None else "absent" for shape in (there, wanted)]
                raise UserError(
                    f"init={readable(str(self.path))} has another {name}: {readable(_shown(key))} is {says[0]} there and "
                    f"{says[1]} here; leave out model= and its settings to take those of the init"
                )


def as_trained(weights: Weights, like: Weights) -> dict[str, Tensor]:
    """Plain weights under the names that they have where spectral norm is in place."""
    names = {key.replace(ORIGINAL, "weight"): key for key in like if key.endswith(ORIGINAL)}
    return {names.get(key, key): tensor for key, tensor in weights.items()}


def _of_classes(before: Weights, own: Weights) -> set[str]:
    """The tensors whose shape the number of classes decides, each with all that belongs to the same weight."""
    differ = {key for key in before.keys() & own.keys() if before[key].shape != own[key].shape}
    weights = {key.partition(NORMALISED)[0] for key in differ if NORMALISED in key}
    return differ | {key for key in own if NORMALISED in key and key.partition(NORMALISED)[0] in weights}


def _shown(key: str) -> str:
    """The name of a weight, whichever of its parts is meant."""
    layer, normalised, _ = key.partition(NORMALISED)
    return f"{layer}.weight" if normalised else key


def _is_vector(key: str) -> bool:
    """Whether a tensor is a singular vector of spectral norm."""
    return NORMALISED in key and not key.endswith(ORIGINAL)


def freeze_first(discriminator: Discriminator, n: int) -> None:
    """Train the first n blocks of a discriminator's body no further (Mo et al. 2020, "Freeze the Discriminator").

    Their weights get no gradients; a batch norm among them still normalises by its batch.

    Raises:
        UserError: there are not as many.
    """
    own = discriminator.blocks()
    if n > len(own):
        has = f"has {len(own)} blocks" if own else "names no blocks to freeze (Discriminator.blocks)"
        raise UserError(f"trainer.freeze_d={n}: {type(discriminator).__name__} {has}")
    for layer in (layer for block in own[:n] for layer in block):
        layer.requires_grad_(False)
