"""The parts of a gan, each from its node of the configuration: networks, data, evaluator."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.evaluator import Evaluator, FeatureEvaluator, NoEvaluator
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.models.interface import Discriminator, Generator
from cifargan.registry import DISCRIMINATORS, EXTRACTORS, GENERATORS, HEADS, SOURCES, construct
from cifargan.schema import arguments, lookup, without

log = logging.getLogger(__name__)

HEAD_PROVIDED = ("in_features", "num_classes", "spectral_norm")
EVALUATOR_PROVIDED = ("extractor", "images", "final_images", "device")
EVALUATOR_OWN = ("every", "samples", "final_samples", "full", "batch_size", "warn_after", "stop_after", "target")
SPLITS = ("train", "test")


def build_generator(node: DictConfig, *, num_classes: int, image_size: int) -> Generator:
    """The generator that `model.generator` describes."""
    generator: Generator = construct(
        GENERATORS, node, "model.generator", num_classes=num_classes, image_size=image_size
    )
    return generator


def build_discriminator(node: DictConfig, *, num_classes: int, image_size: int) -> Discriminator:
    """The discriminator that `model.discriminator` describes, with its head."""
    where = "model.discriminator.head"
    head = lookup(HEADS, node.head, where)
    factory = partial(head, **arguments(head, node.head, where, provided=HEAD_PROVIDED))
    discriminator: Discriminator = construct(
        DISCRIMINATORS,
        without(node, "head"),
        "model.discriminator",
        num_classes=num_classes,
        image_size=image_size,
        head=factory,
    )
    return discriminator


def build_data(node: DictConfig) -> ImageSet:
    """Load the images that `data` describes."""
    images: ImageSet = construct(SOURCES, node, "data").load()
    return images


def build_extractor(node: DictConfig, *, device: torch.device) -> FeatureExtractor:
    """The feature network that `evaluator` names, with its weights."""
    extractor: FeatureExtractor = construct(EXTRACTORS, without(node, *EVALUATOR_OWN), "evaluator", device=device)
    return extractor


def build_evaluator(node: DictConfig, *, images: ImageSet, data: DictConfig, device: torch.device) -> Evaluator:
    """The evaluator that `evaluator` describes; its networks and the features of `images` are ready afterwards."""
    if node.name == "none":
        return NoEvaluator()
    settings = arguments(FeatureEvaluator, evaluator_own(node), "evaluator", provided=EVALUATOR_PROVIDED)
    return FeatureEvaluator(
        extractor=build_extractor(node, device=device),
        images=images,
        final_images=partial(splits_of, data, images),
        device=device,
        **settings,
    )


def splits_of(node: DictConfig, images: ImageSet, wanted: Sequence[str] = SPLITS) -> list[ImageSet]:
    """The splits that a data set can be scored against, those that it was not loaded with included.

    Args:
        node: `data` in the configuration.
        images: what was loaded by it.
        wanted: which splits.

    Returns:
        One set for each split there is; where there is none by such a name, `images` alone.
    """
    found = []
    for split in wanted:
        if images.splits == (split,):
            found.append(images)
            continue
        try:
            found.append(build_data(cast(DictConfig, OmegaConf.merge(node, {"splits": [split]}))))
        except UserError as error:
            log.info("not scored against a split called %s: %s", split, error)
    return found or [images]


def evaluator_own(node: DictConfig) -> DictConfig:
    """The settings under `evaluator.` that are not the extractor's."""
    return without(node, *(str(key) for key in node if key not in EVALUATOR_OWN))
