"""Load trained networks from runs and from files of `cifargan export`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from cifargan.config import build_discriminator, build_generator
from cifargan.device import select_device
from cifargan.errors import UserError
from cifargan.models.heads import AuxiliaryHead, EmbeddingHead
from cifargan.models.interface import Discriminator, Generator
from cifargan.models.spectral import remove_spectral_norm_
from cifargan.registry import HEADS
from cifargan.runs.checkpoint import CheckpointStore, Description, State, describe, load
from cifargan.runs.directory import RunDirectory, find_run
from cifargan.runs.generator_file import is_generator_file, read_generator_file
from cifargan.sampling import BatchNormMode, Sampler
from cifargan.schema import lookup, section
from cifargan.training.restoring import load_network, require_fits
from cifargan.training.speed import Switches, remembered
from cifargan.untrusted import readable, refusing

Weights = Literal["ema", "raw"]
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def find_generator(name: str | None, root: Path = Path("outputs")) -> tuple[Path, Path]:
    """A run, as `find_run`, or a file of `cifargan export`; and the folder for what is made from it.

    Raises:
        UserError: as `find_run`.
    """
    if name is not None and is_generator_file(name):
        return Path(name), Path(name).with_suffix("")
    path = find_run(name, root).path
    return path, path


def describe_file(path: Path) -> Description:
    """What a checkpoint or a file of `cifargan export` says of itself.

    Raises:
        UserError: it is missing, damaged, or none of ours.
    """
    return read_generator_file(path).about if is_generator_file(path) else describe(load(path), path)


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
    """

    sampler: Sampler
    classes: tuple[str, ...]
    conditional: bool
    checkpoint: Path
    step: int
    weights: Weights
    batch_norm: BatchNormMode

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
    """Bring back the generator of a run, or one that `cifargan export` wrote.

    Args:
        run: the run's folder, or a `.safetensors` file; None: the newest run below `root`.
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
    )


@dataclass(frozen=True, kw_only=True)
class TrainedGenerator:
    """A generator as its file has it, on the CPU, and what the file says of it.

    Attributes:
        generator: in the form that training used: the very same images as in its grids, and as fast.
        about: its settings, classes, size of images and training step.
        path: the checkpoint, or the file of `cifargan export`.
        weights: `ema` or `raw`.
        switches: what made training fast.
    """

    generator: Generator
    about: Description
    path: Path
    weights: Weights
    switches: Switches


def trained_generator(
    source: str | Path | None = None,
    *,
    checkpoint: str = "last",
    weights: Weights = "ema",
    root: str | Path = "outputs",
) -> TrainedGenerator:
    """Bring back a generator from a run or from a file of `cifargan export`. Takes and raises what `load_generator` does."""
    if weights not in get_args(Weights):
        raise UserError(f"weights={weights}: choose from {', '.join(get_args(Weights))}")
    if source is not None and is_generator_file(source):
        return _generator_in(Path(source), checkpoint, weights)
    directory = find_run(None if source is None else str(source), Path(root))
    path = CheckpointStore(directory.checkpoints).find(checkpoint)
    state = load(path)
    about = describe(state, path)
    generator = _revive(partial(_build, about), state, "ema" if weights == "ema" else "generator", "generator", path)
    switches = remembered(_part(state, "switches", path))
    switches.prepare(generator)
    return TrainedGenerator(generator=generator, about=about, path=path, weights=weights, switches=switches)


def _generator_in(path: Path, checkpoint: str, weights: Weights) -> TrainedGenerator:
    """The generator in a file of `cifargan export`, which holds one step and one kind of weights."""
    file = read_generator_file(path)
    if checkpoint not in ("last", str(file.about.step)):
        raise UserError(
            f"{readable(str(path))} holds step {file.about.step} alone, not {checkpoint}: name the run instead"
        )
    if weights == "raw" and file.kind != "raw":
        raise UserError(f"{readable(str(path))} holds the average alone, not the raw weights: name the run instead")

    def build() -> Generator:
        network = _build(file.about)
        remove_spectral_norm_(network)
        return network

    generator = _revive(build, {"weights": file.tensors}, "weights", "generator", path)
    switches = remembered(file.switches)
    switches.prepare(generator)
    kind: Weights = "ema" if file.kind == "ema" else "raw"
    return TrainedGenerator(generator=generator, about=file.about, path=path, weights=kind, switches=switches)


def _build(about: Description) -> Generator:
    node = section(about.config, "model.generator")
    return build_generator(node, num_classes=len(about.classes), image_size=about.image_size)


def _part(state: State, key: str, path: Path) -> dict[str, Any]:
    part = state.get(key)
    if not isinstance(part, dict):
        raise UserError(f"{readable(str(path))} has no {key}: it is damaged, or none of ours")
    return part


def _revive(build: Callable[[], NetworkT], state: State, key: str, name: str, path: Path) -> NetworkT:
    """A network with its weights from a checkpoint.

    Raises:
        UserError: they do not go with its configuration, which takes no memory to find out.
    """
    weights = _part(state, key, path)
    with refusing(f"{readable(str(path))}: its {name} cannot be built: it is damaged, or none of ours"):
        if not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
            raise TypeError("weights are tensors")
        with torch.device("meta"):
            require_fits(build(), weights, name)
    network = build()
    load_network(network, weights, name)
    return network


def load_classifier(run: Path, *, checkpoint: str = "last", device: str = "auto") -> Discriminator | None:
    """The discriminator of a run in eval mode, if its head tells classes apart.

    Args:
        run: the run's folder, or a file of `cifargan export`, which holds no discriminator.
        checkpoint: `last`, `best` or a step.
        device: where to put it.

    Raises:
        UserError: no such checkpoint or device, or a damaged file.
    """
    if is_generator_file(run):
        return None
    path = CheckpointStore(RunDirectory(run).checkpoints).find(checkpoint)
    state = load(path)
    about = describe(state, path)
    node = section(about.config, "model.discriminator")
    where = "model.discriminator.head"
    if lookup(HEADS, section(about.config, where), where) not in (AuxiliaryHead, EmbeddingHead):
        return None
    build = partial(build_discriminator, node, num_classes=len(about.classes), image_size=about.image_size)
    discriminator = _revive(build, state, "discriminator", "discriminator", path)
    return discriminator.to(select_device(device)).eval()
