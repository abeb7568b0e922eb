"""Load trained networks from runs, checkpoints and files of `cifargan export`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from omegaconf import DictConfig
from torch import nn

from cifargan.config import build_discriminator, build_generator, given_beside_logits
from cifargan.device import select_device
from cifargan.errors import UserError
from cifargan.models.interface import Discriminator, Generator
from cifargan.models.spectral import remove_spectral_norm_
from cifargan.runs.checkpoint import CheckpointStore
from cifargan.runs.directory import find_run
from cifargan.runs.networks import Description, TrainedNetworks, read_networks
from cifargan.sampling import BatchNormMode, Sampler
from cifargan.schema import section
from cifargan.tensor_file import is_tensor_file
from cifargan.training.speed import SpeedOptions, remembered
from cifargan.training.state import load_network, require_fits
from cifargan.untrusted import readable, refusing

Weights = Literal["ema", "raw"]
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def find_generator(name: str | None, root: Path = Path("outputs")) -> tuple[Path, Path]:
    """A run, as `find_run`, or a file with a generator; and the folder for what is made from it.

    Raises:
        UserError: as `find_run`.
    """
    if name is not None and is_tensor_file(name):
        return Path(name), Path(name).with_suffix("")
    path = find_run(name, root).path
    return path, path


@dataclass(frozen=True)
class LoadedGenerator:
    """A trained generator, ready to draw from, and what it is.

    Attributes:
        sampler: draws images; see `cifargan.sampling.Sampler`.
        classes: class names, in the order of their labels.
        conditional: whether the generator listens to labels.
        checkpoint: the file that the weights come from.
        step: the training step of those weights.
        weights: `ema` or `raw`.
        batch_norm: which statistics its batch norms use.
        config: the configuration of its run.
    """

    sampler: Sampler
    classes: tuple[str, ...]
    conditional: bool
    checkpoint: Path
    step: int
    weights: Weights
    batch_norm: BatchNormMode
    config: DictConfig

    def sample(
        self, n: int, *, classes: str | list[str] | None = None, truncation: float | None = None, seed: int = 0
    ) -> torch.Tensor:
        """Draw n images, (n, 3, H, W) uint8 on the CPU; the same seed gives the same images."""
        return self.sampler.sample(n, classes=classes, truncation=truncation, seed=seed)


def load_generator(
    run: str | Path | None = None,
    *,
    checkpoint: str = "last",
    weights: Weights = "ema",
    batch_norm: BatchNormMode = "standing",
    device: str = "auto",
    batch_size: int = 100,
    root: str | Path = "outputs",
) -> LoadedGenerator:
    """Load the generator of a run, or one that `cifargan export` wrote.

    Args:
        run: the run's folder, a checkpoint, or an exported file; None: the newest run below `root`.
        checkpoint: `last`, `best` or a step.
        weights: the moving average, or the raw weights of that step.
        batch_norm: `standing` (recomputed for these weights), `running` (as training left them, or as they were
            exported) or `batch`.
        device: where to draw.
        batch_size: images drawn at once; has no influence on them.
        root: where runs are looked for.

    Raises:
        UserError: no such run, checkpoint or device, or a damaged file.
    """
    trained = trained_generator(run, checkpoint=checkpoint, weights=weights, root=root)
    classes = trained.about.classes
    target = select_device(device)
    return LoadedGenerator(
        sampler=Sampler(
            trained.generator.to(target), classes, device=target, batch_norm=batch_norm, batch_size=batch_size
        ),
        classes=classes,
        conditional=trained.generator.num_classes > 0,
        checkpoint=trained.path,
        step=trained.about.step,
        weights=trained.weights,
        batch_norm=batch_norm,
        config=trained.about.config,
    )


@dataclass(frozen=True, kw_only=True)
class TrainedGenerator:
    """A generator as its file has it, on the CPU, and what the file says of it.

    Attributes:
        generator: in the form that training used: the very same images as in its grids, and as fast.
        about: its settings, classes, size of images and training step.
        path: the checkpoint, or the file of `cifargan export`.
        weights: `ema` or `raw`.
        speed: what made training fast.
    """

    generator: Generator
    about: Description
    path: Path
    weights: Weights
    speed: SpeedOptions


def trained_generator(
    source: str | Path | None = None,
    *,
    checkpoint: str = "last",
    weights: Weights = "ema",
    root: str | Path = "outputs",
) -> TrainedGenerator:
    """Load a generator from a run or a file. Takes and raises what `load_generator` does."""
    if weights not in get_args(Weights):
        raise UserError(f"weights={weights}: choose from {', '.join(get_args(Weights))}")
    networks = _networks(source, checkpoint, Path(root))
    about = networks.about
    # An exported file holds one kind of weights; without a choice it is taken as it is.
    kind: Weights = "raw" if weights == "ema" and networks.plain and "raw" in networks.weights else weights
    node = section(about.config, "model.generator")
    build = partial(build_generator, node, num_classes=len(about.classes), image_size=about.image_size)
    generator = _loaded(build, networks, kind, "generator")
    speed = remembered(networks.speed)
    speed.prepare(generator)
    return TrainedGenerator(generator=generator, about=about, path=networks.path, weights=kind, speed=speed)


def load_classifier(
    source: str | Path, *, checkpoint: str = "last", root: str | Path = "outputs", device: str = "auto"
) -> Discriminator | None:
    """The discriminator of a run in eval mode, if its head classifies; None for an exported file, which holds none.

    Takes and raises what `load_generator` does.
    """
    networks = _networks(source, checkpoint, Path(root))
    about = networks.about
    node = section(about.config, "model.discriminator")
    if networks.plain or "class_logits" not in given_beside_logits(node):
        return None
    build = partial(build_discriminator, node, num_classes=len(about.classes), image_size=about.image_size)
    return _loaded(build, networks, "discriminator", "discriminator").to(select_device(device)).eval()


def _networks(source: str | Path | None, checkpoint: str, root: Path) -> TrainedNetworks:
    """What the file holds that is meant by a run and one of its checkpoints, or by the path of a file.

    Raises:
        UserError: there is no such file, it is damaged, or it is of another step.
    """
    if source is None or not is_tensor_file(source):
        directory = find_run(None if source is None else str(source), root)
        return read_networks(CheckpointStore(directory.checkpoints).find(checkpoint))
    networks = read_networks(Path(source))
    step = networks.about.step
    if checkpoint not in ("last", str(step)):
        raise UserError(f"{readable(str(source))} holds step {step} alone, not {checkpoint}: name the run instead")
    return networks


def _loaded(build: Callable[[], NetworkT], networks: TrainedNetworks, kind: str, name: str) -> NetworkT:
    """A network with its weights.

    Raises:
        UserError: the weights do not fit the configuration, which is found out without memory for the network.
    """
    weights = dict(networks.of(kind))

    def empty() -> NetworkT:
        network = build()
        if networks.plain:
            remove_spectral_norm_(network)
        return network

    where = readable(str(networks.path))
    message = f"{where}: its {name} cannot be built: it is damaged or not a file of cifargan"
    with refusing(message), torch.device("meta"):
        require_fits(empty(), weights, name)
    network = empty()
    load_network(network, weights, name)
    return network
