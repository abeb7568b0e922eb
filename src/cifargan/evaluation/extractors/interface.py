"""What every network that turns images into features has in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.evaluation.records import FeatureSpace


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
    """Images to features, and all that must be known of it to compare two scores.

    Attributes:
        name: which extractor it is, as `evaluator=` knows it.
        suffix: what tells its scores from those of any other space; empty for TF-ported Inception with the published
            weights in float32 alone.
        dim: d, how many features an image has.
        has_logits: whether it gives logits that an Inception Score may be built from.
        resize: how images come to the size that the network looks at, in words.
        dtype: what the network computes in, "float32" or "bfloat16".
        weights_hash: SHA-256 of the weights file, in hex.
    """

    name: str
    suffix: str
    dim: int
    has_logits: bool = False
    resize: str
    dtype: str = "float32"
    weights_hash: str

    @property
    def space(self) -> FeatureSpace:
        """What a record says of it."""
        return FeatureSpace(extractor=self.name, weights_hash=self.weights_hash, resize=self.resize, dtype=self.dtype)

    def require_complete(self) -> None:
        """Check that a class of a user's own sets every attribute.

        Raises:
            UserError: it does not.
        """
        if missing := [key for key in FeatureExtractor.__annotations__ if getattr(self, key, None) is None]:
            raise UserError(f"feature extractor {type(self).__name__} does not set {', '.join(missing)}")

    def extract(self, images: Tensor) -> Features:
        """Look at images, in full float32 unless `dtype` says otherwise.

        Args:
            images: (N, 3, H, W) uint8, on the extractor's device.

        Returns:
            Features on that device.

        Raises:
            ValueError: the images are of another type or shape.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"features are those of uint8 images, and these are {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"features are those of images (N, 3, H, W), and these are {tuple(images.shape)}")
        with full_precision(images.device):
            return self._forward(images)

    @abstractmethod
    def _forward(self, images: Tensor) -> Features:
        """The pass itself."""
