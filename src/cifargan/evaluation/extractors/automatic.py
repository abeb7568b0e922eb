"""Choose the best feature network whose weights are available."""

import logging

import torch

from cifargan.errors import UserError
from cifargan.evaluation.extractors.efficientnet import EfficientNetLite0
from cifargan.evaluation.extractors.inception import Inception
from cifargan.evaluation.extractors.interface import FeatureExtractor

log = logging.getLogger(__name__)


def automatic(*, weights: str | None = None, resolution: int = 64, device: torch.device) -> FeatureExtractor:
    """Inception if its weights exist or can be downloaded, else EfficientNet-Lite0 with a warning.

    Args:
        weights: path of Inception's weights, as `evaluator=inception` takes it.
        resolution: pixels that EfficientNet-Lite0 looks at.
        device: where to run.

    Raises:
        UserError: neither is available.
    """
    try:
        return Inception(weights=weights, device=device)
    except UserError as error:
        try:
            fallback = EfficientNetLite0(resolution=resolution, device=device)
        except UserError as other:
            raise UserError(f"evaluator=auto: {error}; and {other}") from other
        log.warning(
            "no Inception here (%s): scoring with EfficientNet-Lite0 instead; its distances are no FID, and are called "
            "fd%s",
            error,
            fallback.suffix,
        )
        return fallback
