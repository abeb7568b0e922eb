"""Which class each row of a run's grids is of."""

import logging

import torch

from cifargan.config import build_generator
from cifargan.errors import UserError
from cifargan.runs.checkpoint import CheckpointStore, describe
from cifargan.runs.directory import RunDirectory
from cifargan.schema import section
from cifargan.untrusted import refusing

log = logging.getLogger(__name__)


def row_names(run: RunDirectory) -> tuple[str, ...]:
    """The class of each row; empty for a generator without classes, and where no checkpoint tells."""
    try:
        found = CheckpointStore(run.checkpoints).newest_whole()
        if found is None:
            return ()
        about = describe(found[1], found[0])
        with refusing(f"{run.path}: its generator cannot be built"), torch.device("meta"):
            node = section(about.config, "model.generator")
            generator = build_generator(node, num_classes=len(about.classes), image_size=about.image_size)
    except UserError as error:
        log.warning("%s: its grids stay without names of classes", error)
        return ()
    return about.classes if generator.num_classes else ()
