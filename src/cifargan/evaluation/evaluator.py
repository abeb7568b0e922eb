"""Scores a generator against real images while it trains."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from cifargan import distributed
from cifargan.data.sources import ImageSet
from cifargan.distributed import gather, on_all_ranks, on_rank_zero
from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.feature_stats import Measurement, Seen, look
from cifargan.evaluation.metrics import IS_SPLITS
from cifargan.evaluation.records import Better, Protocol, Record
from cifargan.evaluation.reference import Reference, reference_of
from cifargan.evaluation.scores import MANIFOLD_SAMPLES, NEIGHBOURS
from cifargan.evaluation.table import FULL, QUICK, Inputs, Metric, caveats, choose, score
from cifargan.sampling import Sampler

log = logging.getLogger(__name__)

SEED = 1  # of the latents that are scored: always the same ones, so that scores of two steps differ by the step alone
LABEL = "scoring"
Stop = Callable[[], bool]


def never() -> bool:
    """Never ask to stop."""
    return False


class Evaluator(ABC):
    """Turns a sampler into records.

    Attributes:
        every: training steps between evaluations.
        monitor: the key of the score by which the best checkpoint is kept.
        better: whether a low or a high one is good.
        warn_after: evaluations in a row that may get worse before a warning.
        stop_after: evaluations without a new best after which training ends; None: never.
        target: the score at which training ends; None: none.
        batch_size: images to generate and look at together.
        plan: what is scored and when, in words.
    """

    every: int
    plan: str
    monitor: str
    better: Better
    batch_size: int
    warn_after: int
    stop_after: int | None
    target: float | None

    @abstractmethod
    def evaluate(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:
        """Score what `sampler` draws at a training step. Leaves training's random number generators alone."""

    @abstractmethod
    def final(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:
        """Score what is worth reporting: many samples, against every split."""


class NoEvaluator(Evaluator):
    """Scores nothing."""

    every = 2**62
    plan = "none (evaluator=none)"
    monitor = "none"
    better: Better = "lower"
    batch_size = 100
    warn_after = 2**62
    stop_after = None
    target = None

    def evaluate(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:  # noqa: ARG002
        """No scores."""
        return []

    def final(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:  # noqa: ARG002
        """No scores."""
        return []


class FeatureEvaluator(Evaluator):
    """Scores by metrics of the table: FID, KID, and the Inception Score where the extractor has logits, or those named.

    Args:
        extractor: images to features.
        images: the real images of the training.
        final_images: gives the real images that the final evaluation compares with.
        table: all metrics, `cifargan.registry.METRICS`.
        every: training steps between evaluations, at least 1.
        samples: generated images an evaluation, at least 2, and 10 for an Inception Score. Scores of different sizes
            are never compared: FID falls with it.
        final_samples: generated images of the evaluation after training; 0 for none.
        full: whether precision, recall, density, coverage and the classes' own distances are computed too.
        metrics: keys of the table in place of these; the first decides which checkpoint is the best. null: see `full`.
        batch_size: images that the extractor looks at together; it changes speed and memory alone.
        warn_after: evaluations in a row that may get worse before a warning.
        stop_after: evaluations without a new best after which training ends; null: never.
        target: the score at which training ends; null: none.
        device: where the features are computed.

    Raises:
        UserError: a number is out of range, a metric cannot be computed, or there is only one real image.
    """

    def __init__(
        self,
        *,
        extractor: FeatureExtractor,
        images: ImageSet,
        final_images: Callable[[], list[ImageSet]],
        table: Mapping[str, Metric],
        every: int,
        samples: int,
        final_samples: int = 50_000,
        full: bool = False,
        metrics: list[str] | None = None,
        batch_size: int = 100,
        warn_after: int = 3,
        stop_after: int | None = None,
        target: float | None = None,
        device: torch.device,
    ) -> None:
        self.chosen = metrics is not None
        defaults = [name for name in (FULL if full else QUICK) if name != "is" or extractor.has_logits]
        where = f"evaluator.metrics=[{','.join(metrics or [])}]"
        self.metrics = choose(table, defaults if metrics is None else metrics, extractor, where=where)
        first = metrics[0] if metrics else "fid"
        if first not in self.metrics or not self.metrics[first].needs.isdisjoint({"classes", "classifier"}):
            raise UserError(f"{where}: begin with a metric of all classes, by which the best checkpoint is kept")
        monitored = self.metrics[first]
        arguments = {name for metric in self.metrics.values() for name in metric.arguments}
        least, why = 2, ""
        if "inception_score" in arguments:
            least, why = IS_SPLITS, " for an Inception Score"
        elif "manifold" in arguments:
            least, why = NEIGHBOURS + 1, " for precision and recall"
        for name, value, lowest, reason in (
            ("every", every, 1, ""),
            ("samples", samples, least, why),
            ("final_samples", final_samples or least, least, f"{why}, or 0 for no final evaluation"),
            ("batch_size", batch_size, 1, ""),
            ("warn_after", warn_after, 1, ""),
            ("stop_after", stop_after or 1, 1, ", or null"),
        ):
            if value < lowest:
                raise UserError(f"evaluator.{name}={value}: must be at least {lowest}{reason}")
        for line in caveats(samples, extractor):
            log.warning("evaluator.samples=%s", line)
        self.extractor = extractor
        self.images = images
        self.final_images = final_images
        self.every = every
        self.samples = samples
        self.final_samples = final_samples
        self.batch_size = batch_size
        self.warn_after = warn_after
        self.stop_after = stop_after
        self.target = target
        self.device = device
        self.reference = self._reference(images)
        last = f"{final_samples:,} at the end" if final_samples else "none at the end"
        detailed = f", {', '.join(metrics)}" if metrics else ", with details" if full else ""
        self.plan = f"{extractor.name}{detailed}: {samples:,} samples every {every:,} steps, {last}"
        self.better = monitored.better
        split = f"_{self.reference.card.split}" if monitored.compares else ""
        self.monitor = f"{monitored.recorded(first, extractor.suffix)}_n{monitored.looks_at(samples)}{split}"

    def evaluate(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:
        """Score `samples` images, never truncated and always from the same latents, against the training images."""
        return self._score(sampler, self.samples, lambda: [self.reference], step, stop)

    def final(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:
        """Score `final_samples` images against every split there is."""
        if self.final_samples == 0:
            return []

        def references() -> list[Reference]:
            known = self.images.fingerprint
            return [
                self.reference if images.fingerprint == known else self._reference(images, stop)
                for images in self.final_images()
            ]

        return self._score(sampler, self.final_samples, references, step, stop)

    def _score(
        self, sampler: Sampler, n: int, references: Callable[[], list[Reference]], step: int, stop: Stop
    ) -> list[Record]:
        protocol = Protocol(
            n=n,
            space=self.extractor.space,
            subject="training",
            step=step,
            checkpoint="last",
            weights="ema",
            batch_norm=sampler.batch_norm,
            seed=SEED,
        )
        seen = self._seen(sampler, n, stop)

        def records() -> list[Record]:
            needs = {name for metric in self.metrics.values() for name in metric.needs}
            measurement = Measurement(
                n,
                self.extractor,
                device=self.device,
                keep_images=MANIFOLD_SAMPLES if "fake_images" in needs else 1,
                keep_logits="fake_logits" in needs,
            )
            for batch in seen:
                measurement.add(batch)
            fake = measurement.result(LABEL)
            found = []
            for reference in (None, *references()):
                inputs = Inputs(fake, reference, classes=sampler.classes, device=self.device)
                found += score(inputs, self.metrics, self.extractor, protocol, strict=self.chosen)
            return found

        return on_rank_zero(records)

    def _seen(self, sampler: Sampler, n: int, stop: Stop) -> Iterable[Seen]:
        """What the extractor sees in n images. Several processes share the work, and the first gets all of it."""

        def part_of(rank: int, processes: int) -> Iterator[Seen]:
            batches = sampler.stream(n, seed=SEED, part=(rank, processes))
            return look(batches, n // processes, self.extractor, device=self.device, label=LABEL, stop=stop)

        rank, processes = distributed.rank(), distributed.world_size()
        if processes == 1:
            return part_of(0, 1)
        own = on_all_ranks(lambda: [seen.cpu() for seen in part_of(rank, processes)])
        return [seen for part in gather(own) for seen in part]

    def _reference(self, images: ImageSet, stop: Stop = never) -> Reference:
        return reference_of(images, self.extractor, device=self.device, batch_size=self.batch_size, stop=stop)
