"""Finds the runs that lie on disk and brings their generators back to life."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from cifargan.build import HEADS, build_discriminator, build_generator, select_device
from cifargan.config import lookup, section
from cifargan.errors import UserError, did_you_mean
from cifargan.models.heads import AuxiliaryHead, EmbeddingHead
from cifargan.models.interface import Discriminator
from cifargan.sampling import BatchNormMode, Sampler
from cifargan.strangers import readable, refusing
from cifargan.training.checkpoint import CheckpointStore, State, describe, load
from cifargan.training.game import load_network, require_fits
from cifargan.training.run_directory import RunDirectory
from cifargan.training.speed import remembered

Weights = Literal["ema", "raw"]
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def all_runs(root: Path) -> list[RunDirectory]:
    """Every run below a folder, the one that was started last at the end."""
    found = [path.parent for path in root.rglob("provenance.json")]
    return [RunDirectory(path) for path in sorted(found, key=_started)]


def _started(path: Path) -> tuple[str, int]:
    """When a run was first started, as text that sorts by time; within a second, when its file was written."""
    file = path / "provenance.json"
    try:
        return str(json.loads(file.read_text())["sessions"][0]["started"]), file.stat().st_mtime_ns
    except (OSError, ValueError, LookupError, TypeError):
        return "", 0


def find_run(name: str | None, root: Path = Path("outputs")) -> RunDirectory:
    """A run by its path, by its path below `root`, or the newest (`latest` or None).

    Raises:
        UserError: there is no such run.
    """
    runs = all_runs(root)
    if name in (None, "latest"):
        if not runs:
            raise UserError(f"there is no run under {root}: train one first (cifargan train), or name its folder")
        return runs[-1]
    for path in (Path(str(name)), root / str(name)):
        if RunDirectory(path).holds_a_run():
            return RunDirectory(path)
    near = did_you_mean(str(name), [str(run.path) for run in runs])
    hint = near or (f"; the newest is {runs[-1].path}" if runs else f"; there is none under {root} either")
    raise UserError(f"there is no run at {name}{hint}")


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
    """Bring back the generator of a run.

    Args:
        run: the run's folder; None: the newest below `root`.
        checkpoint: `last`, `best` or a step.
        weights: the moving average, or the raw weights of that step.
        batch_norm: `standing` (recomputed for these weights), `running` (as training left them) or `batch`.
        device: where to draw.
        batch_size: images drawn at once; has no influence on them.
        root: where runs are looked for.

    Raises:
        UserError: no such run, checkpoint or device, or a damaged file.
    """
    if weights not in get_args(Weights):
        raise UserError(f"weights={weights}: choose from {', '.join(get_args(Weights))}")
    directory = find_run(None if run is None else str(run), Path(root))
    path = CheckpointStore(directory.checkpoints).find(checkpoint)
    state = load(path)
    about = describe(state, path)
    classes = about.classes
    part = "ema" if weights == "ema" else "generator"
    build = partial(
        build_generator, section(about.config, "model.generator"), num_classes=len(classes), image_size=about.image_size
    )
    generator = _revive(build, state, part, "generator", path)
    # The form that training used: the very same images as in its grids, and as fast.
    remembered(_part(state, "switches", path)).prepare(generator)
    target = select_device(device)
    return LoadedGenerator(
        sampler=Sampler(generator.to(target), classes, device=target, batch_norm=batch_norm, batch_size=batch_size),
        classes=classes,
        conditional=generator.num_classes > 0,
        checkpoint=path,
        step=about.step,
        weights=weights,
        batch_norm=batch_norm,
    )


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
        run: the run's folder.
        checkpoint: `last`, `best` or a step.
        device: where to put it.

    Raises:
        UserError: no such checkpoint or device, or a damaged file.
    """
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
