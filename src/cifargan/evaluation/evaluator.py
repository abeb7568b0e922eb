"""Scores a generator against real images while it trains."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.features import FeatureExtractor, Features
from cifargan.evaluation.metrics import frechet_distance, inception_score, kernel_distance, mean_and_covariance
from cifargan.sampling import Sampler

CHUNK = 500


class Evaluator(ABC):
    """Turns a sampler into named scores.

    Attributes:
        every: training steps between evaluations.
        monitor: the score, lower is better, by which the best checkpoint is kept.
    """

    every: int
    monitor: str

    @abstractmethod
    def evaluate(self, sampler: Sampler) -> dict[str, float]:
        """Score what `sampler` draws. Leaves the training's random number generators alone."""


class NoEvaluator(Evaluator):
    """Measures nothing, never."""

    every = 2**62
    monitor = "none"

    def evaluate(self, sampler: Sampler) -> dict[str, float]:  # noqa: ARG002
        """No scores."""
        return {}


class FeatureEvaluator(Evaluator):
    """Fréchet and kernel distance, and the Inception Score where the extractor's logits fit.

    The names say what was measured: `score/fd_lite0_64_n2000` is a Fréchet distance of 2,000 samples in that space.

    Args:
        extractor: images to features.
        reference: the real images; at most `samples` of them, spread evenly over the set, are used.
        every: training steps between evaluations.
        samples: generated images to score; FID falls with it, so scores of different sizes are never compared.
        device: where the features are computed.
    """

    def __init__(
        self, *, extractor: FeatureExtractor, reference: ImageSet, every: int, samples: int, device: torch.device
    ) -> None:
        if every < 1 or samples < 2:
            raise UserError(f"evaluator.every={every} must be at least 1 and evaluator.samples={samples} at least 2")
        self.extractor = extractor
        self.every = every
        self.samples = samples
        self.device = device
        n = min(samples, len(reference.images))
        picked = torch.linspace(0, len(reference.images) - 1, n).round().long()
        self.suffix = f"_n{samples}" if samples == n else f"_n{samples}v{n}"
        self.monitor = f"score/{extractor.distance_name}{self.suffix}"
        self.real = self._features(reference.images[picked]).features
        self.real_statistics = mean_and_covariance(self.real)

    def evaluate(self, sampler: Sampler) -> dict[str, float]:
        """Draw `samples` images, never truncated, and score them."""
        fake = self._features(sampler.sample(self.samples, seed=1))
        kernel, kernel_deviation = kernel_distance(self.real, fake.features)
        kernel_name = f"score/{self.extractor.kernel_name}{self.suffix}"
        scores = {
            self.monitor: frechet_distance(*self.real_statistics, *mean_and_covariance(fake.features)),
            kernel_name: kernel,
            f"{kernel_name}_std": kernel_deviation,
        }
        if fake.logits is not None:
            score, deviation = inception_score(fake.logits)
            scores |= {f"score/is_n{self.samples}": score, f"score/is_n{self.samples}_std": deviation}
        return scores

    @torch.inference_mode()
    def _features(self, images: Tensor) -> Features:
        """Features of (N, 3, H, W) uint8 CPU images, gathered on the CPU."""
        seen = [self.extractor.extract(chunk.to(self.device)) for chunk in torch.split(images, CHUNK)]
        logits = [part.logits.cpu() for part in seen if part.logits is not None]
        return Features(torch.cat([part.features.cpu() for part in seen]), torch.cat(logits) if logits else None)
