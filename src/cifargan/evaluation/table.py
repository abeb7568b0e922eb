"""The table of metrics: what a metric needs, which direction is better, and how its values become records."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from cifargan.errors import UserError, did_you_mean
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.feature_stats import Measured
from cifargan.evaluation.records import Better, Protocol, Record
from cifargan.evaluation.reference import Reference
from cifargan.evaluation.scores import MANIFOLD_SAMPLES, SHARED, SUBSET_SIZE, Value

QUICK = ("is", "fid", "kid")
FULL = (*QUICK, "precision", "recall", "density", "coverage", "class_fid", "class_hit_rate")
FAKE = ("fake_features", "fake_gaussian", "fake_logits", "inception_score", "fake_labels", "fake_images")
REAL = ("real_features", "real_gaussian", "real_labels", "real_images")
OTHERS = ("classes", "classifier", "device")
IN_FEATURE_SPACE = {
    "fake_features",
    "fake_gaussian",
    "fake_logits",
    "inception_score",
    "real_features",
    "real_gaussian",
}


@dataclass(frozen=True)
class Metric:
    """An entry of `cifargan.registry.METRICS`.

    Attributes:
        function: gives a float, a `Value` or several. The names of its arguments say what it needs, see `Inputs`.
        better: whether a low or a high score is good.
        name: of its records; empty: its key in the table.
        elsewhere: the name in other feature spaces than that of FID's Inception; empty: the same.

    Raises:
        UserError: the function needs something that nothing gives.
    """

    function: Callable[..., float | Value | Iterable[Value]]
    _: KW_ONLY
    better: Better
    name: str = ""
    elsewhere: str = ""

    def __post_init__(self) -> None:
        """Reject arguments that nothing gives."""
        known = (*FAKE, *REAL, *OTHERS, *SHARED)
        for name in self.arguments:
            if name not in known:
                hint = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
                raise UserError(f"metric {self.function.__name__}: nothing gives its argument {name}{hint}")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the function's arguments."""
        return tuple(inspect.signature(self.function).parameters)

    @property
    def needs(self) -> set[str]:
        """What it looks at, directly or through what it shares with other metrics."""
        shared = {
            need for name in self.arguments if name in SHARED for need in inspect.signature(SHARED[name]).parameters
        }
        return {*self.arguments, *shared} - {*SHARED}

    @property
    def compares(self) -> bool:
        """Whether it needs real images."""
        return not self.needs.isdisjoint(REAL)

    def looks_at(self, n: int) -> int:
        """How many of n generated images it looks at."""
        return n if set(self.arguments).isdisjoint({*SHARED, "fake_images"}) else min(n, MANIFOLD_SAMPLES)

    def recorded(self, key: str, suffix: str) -> str:
        """The name of its records in a feature space; only that of FID's Inception has no suffix.

        Args:
            key: its key in the table.
            suffix: of the feature extractor.
        """
        name = self.name or key
        if not suffix or self.needs.isdisjoint(IN_FEATURE_SPACE):
            return name
        return f"{self.elsewhere or name}{suffix}"


class Inputs:
    """What metrics may look at, by name; what several share is computed once.

    `fake_features`, `real_features` (N, d) float32 on the CPU; `fake_labels`, `real_labels` (N,) int64; `fake_gaussian`,
    `real_gaussian`: their `Gaussian`; `fake_images`, `real_images` (N, 3, H, W) uint8, of the fake ones only the first
    10,000; `fake_logits` (N, K) and `inception_score`, a mean and a deviation, from an extractor with logits; `manifold`
    and `copies`, see `SHARED`; `classes`, the class names that the labels count; `classifier`, the run's discriminator
    with a class head; `device`.

    Args:
        fake: the generated images.
        reference: the real ones; None for metrics that need none.
        classes: class names of the generated images; empty: they have none.
        classifier: a discriminator in eval mode; None: there is none.
        device: where blocks of distances are computed.

    Raises:
        UserError: the real images are of another size.
    """

    def __init__(
        self,
        fake: Measured,
        reference: Reference | None = None,
        *,
        classes: tuple[str, ...] = (),
        classifier: Any = None,
        device: torch.device,
    ) -> None:
        self.n = len(fake)
        self.reference = reference
        given: dict[str, Any] = {
            "fake_features": fake.features,
            "fake_gaussian": fake.gaussian,
            "fake_labels": fake.labels,
            "fake_logits": fake.logits,
            "fake_images": fake.images if len(fake.images) else None,
            "inception_score": fake.inception_score,
            "classes": classes or None,
            "classifier": classifier,
            "device": device,
        }
        if reference is not None:
            _check_size(fake, reference)
            given["real_gaussian"] = reference.gaussian
            # Labels of other classes count something else.
            given["classes"] = classes if classes and classes == reference.classes else None
            if reference.has_features:
                given |= {"real_features": reference.features, "real_labels": reference.labels}
                given["real_images"] = reference.images
        self._known = {name: value for name, value in given.items() if value is not None}

    def lack(self, metric: Metric) -> list[str]:
        """What a metric needs and is not known."""
        return sorted(metric.needs - {*self._known})

    def call(self, function: Callable[..., Any]) -> Any:
        """What a function gives for the inputs that its arguments name."""
        return function(**{name: self._get(name) for name in inspect.signature(function).parameters})

    def _get(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = self.call(SHARED[name])
        return self._known[name]


def score(
    inputs: Inputs,
    metrics: Mapping[str, Metric],
    extractor: FeatureExtractor,
    protocol: Protocol,
    *,
    strict: bool = False,
) -> list[Record]:
    """The records of all metrics that compare with the reference, or without one of all that compare with none.

    Args:
        inputs: what they look at.
        metrics: which ones, by their keys.
        extractor: what the features are of.
        protocol: goes into the records.
        strict: whether a metric whose needs are not known is an error, or is left out.

    Raises:
        UserError: there are too few images; with `strict`, a metric cannot be computed.
    """
    records = []
    reference = inputs.reference
    for key, metric in metrics.items():
        if metric.compares != (reference is not None):
            continue
        if lacking := inputs.lack(metric):
            if strict:
                real = f" against {reference.card.name} {reference.card.split}" if reference else ""
                raise UserError(f"metric {key}: needs {', '.join(lacking)}, not known of {protocol.subject}{real}")
            continue
        found = inputs.call(metric.function)
        values = (
            [found] if isinstance(found, Value) else found if isinstance(found, Iterable) else [Value(float(found))]
        )
        records += [
            Record(
                metric=metric.recorded(key, extractor.suffix),
                value=value.value,
                better=metric.better,
                kind=key,
                spread=value.spread,
                spread_over=value.spread_over,
                n=metric.looks_at(inputs.n) if value.n is None else value.n,
                class_name=value.class_name,
                protocol=protocol,
                reference=reference.card if reference else None,
            )
            for value in values
        ]
    return records


def choose(
    table: Mapping[str, Metric], names: Sequence[str], extractor: FeatureExtractor, *, where: str
) -> dict[str, Metric]:
    """The metrics of these names.

    Args:
        table: `cifargan.registry.METRICS`.
        names: keys of the table.
        extractor: what the features will be of.
        where: the setting that names them, for the error message.

    Raises:
        UserError: there is no such metric, or it needs logits and the extractor has none.
    """
    for name in names:
        if name not in table:
            hint = did_you_mean(name, table) or f"; choose from {', '.join(table)}"
            raise UserError(f"{where}: there is no metric {name}{hint}")
        if not extractor.has_logits and not table[name].needs.isdisjoint({"inception_score", "fake_logits"}):
            raise UserError(f"{where}: {name} needs class logits, and {extractor.name} has none; choose another one")
    return {name: table[name] for name in names}


def caveats(n: int, extractor: FeatureExtractor) -> list[str]:
    """What must be known of scores from as few as n images."""
    lines = []
    if n <= extractor.dim:
        lines.append(f"{n} images for {extractor.dim} features: the covariance is singular, a distance far too large")
    if n < SUBSET_SIZE:
        lines.append(f"{n} images: the kernel distance is over subsets of {n} instead of {SUBSET_SIZE}")
    return lines


def _check_size(fake: Measured, reference: Reference) -> None:
    if reference.images is None or not len(fake.images):
        return
    made, real = fake.images.shape[-1], reference.images.shape[-1]
    if made != real:
        raise UserError(
            f"the images are {made}x{made} and those of {reference.card.name} {real}x{real}, and a distance would "
            "measure that: give a reference of the same size"
        )
