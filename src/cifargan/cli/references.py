"""What `cifargan evaluate` compares with, and in which feature space, from its options."""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.config import build_data, build_extractor
from cifargan.data.folder import load_images
from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.reference import Reference, import_statistics, reference_of
from cifargan.registry import SOURCES


def extractor_for(options: argparse.Namespace, own: DictConfig, device: torch.device) -> FeatureExtractor:
    """The feature network that was asked for, else the run's own, else Inception."""
    node = own
    if options.evaluator or own.name == "none":
        node = OmegaConf.create({"name": options.evaluator or "inception"})
    return build_extractor(with_settings(node, weights=options.extractor_weights), device=device)


def with_settings(node: DictConfig, **given: str | None) -> DictConfig:
    """A node with those of the settings that were given."""
    settings: dict[str, Any] = {str(key): value for key, value in node.items()}
    return OmegaConf.create(settings | {key: value for key, value in given.items() if value is not None})


def outside_reference(options: argparse.Namespace, extractor: FeatureExtractor, device: torch.device) -> Reference:
    """Real images by the name of a data set, by a path, or as statistics."""
    name, _, split = (options.reference or "cifar10").partition(":")
    if name in SOURCES and not Path(options.reference or "").exists():
        node = OmegaConf.create({"name": name, "splits": [split or "train"]})
        return reference_of(
            build_data(with_settings(node, root=options.data_root)),
            extractor,
            device=device,
            batch_size=options.batch_size,
        )
    path = Path(options.reference)
    if path.suffix == ".npz" and path.is_file() and is_statistics(path):
        return import_statistics(path, extractor)
    if not path.exists():
        raise UserError(
            f"--reference {options.reference}: no such file or folder, and no data set; choose from cifar10, "
            "cifar10:test, digits, or for a run train, test, both"
        )
    return reference_of(load_images(path), extractor, device=device, batch_size=options.batch_size)


def is_statistics(path: Path) -> bool:
    """Whether an `.npz` holds `mu` and `sigma`; a damaged one is reported when it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
