"""Scores a generator against real images while it trains."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.features import FeatureExtractor, Features
from cifargan.evaluation.metrics import (
    IS_SPLITS,
    frechet_distance,
    inception_score,
    kernel_distance,
    mean_and_covariance,
)
from cifargan.sampling import Sampler

BATCH = 100  # real images looked at together; Inception takes some 1.5 GB for as many


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

    The names say what was measured: `score/fd_lite0_64_n2000` is a Fréchet distance of 2,000 samples in that space to
    2,000 real images, `..._n2000v1498` one to 1,498.

    Args:
        extractor: images to features.
        reference: the real images; at most `samples` of them, spread evenly over each class, are used.
        every: training steps between evaluations, at least 1.
        samples: generated images to score, at least 2, and 10 for an Inception Score. FID falls with it, so scores of
            different sizes are never compared.
        device: where the features are computed.

    Raises:
        UserError: a number is out of range, or there is but one real image.
    """

    def __init__(
        self, *, extractor: FeatureExtractor, reference: ImageSet, every: int, samples: int, device: torch.device
    ) -> None:
        if every < 1:
            raise UserError(f"evaluator.every={every}: must be at least 1")
        least, why = (IS_SPLITS, " for an Inception Score") if extractor.has_logits else (2, "")
        if samples < least:
            raise UserError(f"evaluator.samples={samples}: must be at least {least}{why}")
        if len(reference) < 2:
            raise UserError(f"{reference.name} has {len(reference)} image, and a score needs 2: choose evaluator=none")
        self.extractor = extractor
        self.every = every
        self.samples = samples
        self.device = device
        n = min(samples, len(reference))
        # By class first: a step through images that lie class after class in turn could skip classes.
        by_class = reference.labels.argsort(stable=True)
        picked = by_class[torch.arange(n) * len(reference) // n]
        self.suffix = f"_n{samples}" if samples == n else f"_n{samples}v{n}"
        self.monitor = f"score/{extractor.distance_name}{self.suffix}"
        self.real = self._features(torch.split(reference.images[picked], BATCH), n, "real images").features
        self.real_statistics = mean_and_covariance(self.real)

    def evaluate(self, sampler: Sampler) -> dict[str, float]:
        """Draw `samples` images, never truncated and always from the same latents, and score them."""
        batches = (images for images, _ in sampler.stream(self.samples, seed=1))
        fake = self._features(batches, self.samples, "scoring")
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

    def _features(self, batches: Iterable[Tensor], total: int, label: str) -> Features:
        """Features of batches of (B, 3, H, W) uint8 images, `total` in all, gathered on the CPU."""
        features, logits = [], []
        with tqdm(total=total, desc=label, unit="image", leave=False, disable=None) as bar:  # None: on a terminal alone
            for images in batches:
                part = self.extractor.extract(images.to(self.device))
                features.append(part.features.cpu())
                if part.logits is not None:
                    logits.append(part.logits.cpu())
                bar.update(len(images))
        return Features(torch.cat(features), torch.cat(logits) if logits else None)
