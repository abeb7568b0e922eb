"""What a score is: never a bare number, always with all that decides it."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cifargan.errors import UserError
from cifargan.files import write_json

Value = str | float | int | None
Better = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class ReferenceCard:
    """The real images that were compared with.

    Attributes:
        name: the data set.
        split: which of its images, `train`, `test` or several joined by `_`.
        n: how many images; None where statistics from elsewhere do not say.
        fingerprint: SHA-256 over the images, or over the file that statistics came from.
    """

    name: str
    split: str
    n: int | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """What features are of: scores from different spaces are never compared.

    Attributes:
        extractor: the feature network.
        weights_hash: SHA-256 of its weights file.
        resize: how images become its input.
        dtype: what it computes in.
    """

    extractor: str
    weights_hash: str
    resize: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is the same for every score of one pass over images.

    Attributes:
        n: images scored.
        space: what the features are of.
        subject: what the images are: a run's folder, or a path.
        step: training step of the generator; None for images from elsewhere, as all that follows.
        checkpoint: how it was chosen: `best`, `last` or `step`; `last` in training.
        weights: `ema` or `raw`.
        batch_norm: `standing`, `running` or `batch`.
        truncation: threshold on the latents; None for none.
        seed: of the latents.
    """

    n: int
    space: FeatureSpace
    subject: str
    step: int | None = None
    checkpoint: str | None = None
    weights: str | None = None
    batch_norm: str | None = None
    truncation: float | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One score and everything that decides it.

    Attributes:
        metric: `fid`, `kid`, `is`, `precision`, ...; in another feature space with its suffix, `fd_lite0_64`.
        value: the score; NaN never, since what cannot be computed raises.
        better: whether a low or a high score is good.
        kind: the metric's key in `cifargan.registry.METRICS`; empty for what no single metric gives.
        spread: what is given after the plus-minus sign; None where there is none.
        spread_over: what the spread is the population deviation over.
        n: images that this score is of: those of one class, or those that the manifold metrics look at.
        class_name: the class; None for all.
        reference: the real images; None where the metric has no use for any.
        protocol: the rest.
    """

    metric: str
    value: float
    n: int
    protocol: Protocol
    better: Better = "lower"
    kind: str = ""
    spread: float | None = None
    spread_over: str | None = None
    class_name: str | None = None
    reference: ReferenceCard | None = None

    @property
    def key(self) -> str:
        """The score's name in logs: `fid_n50000_train`, `is_n50000`, `fid_n5000_train/cat`."""
        parts = [self.metric, f"n{self.n}"]
        parts += [self.reference.split] if self.reference else []
        return "_".join(parts) + (f"/{self.class_name}" if self.class_name else "")

    @property
    def group(self) -> tuple[str, str]:
        """What two scores must have in common to be ranked together: the metric and its conditions."""
        return self.metric, self.conditions()

    def conditions(self, *, truncation: bool = True) -> str:
        """Everything that decides comparability, in words. Steps and seeds are what scores compare: neither is in it.

        Args:
            truncation: whether the truncation and the number of images of this metric are in it; without them, all
                scores of a truncation curve have the same conditions.
        """
        protocol, space, real = self.protocol, self.protocol.space, self.reference
        of = "" if self.n == protocol.n else f" of {protocol.n:,}"
        parts = [f"{self.n:,}{of} images" if truncation else f"{protocol.n:,} images"]
        if real:
            n = f"{real.n:,}" if real.n else "?"
            parts.append(f"against {real.name} {real.split} ({n}, {real.fingerprint[:8]})")
        parts += [f"{space.extractor} {space.weights_hash[:8]}".strip(), space.resize, space.dtype]
        if protocol.weights:
            threshold = "no truncation" if protocol.truncation is None else f"truncation {protocol.truncation:g}"
            parts += [
                f"{protocol.batch_norm} batch norm",
                f"{protocol.weights} weights",
                threshold if truncation else "",
            ]
        if protocol.checkpoint not in (None, "", "last", "step"):
            parts.append(f"{protocol.checkpoint} checkpoint")
        spread = f"; ± over {self.spread_over}" if self.spread_over and truncation else ""
        return ", ".join(part for part in parts if part) + spread

    def flat(self) -> dict[str, Value]:
        """Everything in one level, as a line of a table or of metrics.jsonl."""
        own = {key: value for key, value in asdict(self).items() if key not in ("protocol", "reference")}
        own["value"] = self.value if math.isfinite(self.value) else None  # JSON has no NaN
        reference = asdict(self.reference) if self.reference else dict.fromkeys(ReferenceCard.__annotations__)
        protocol = {key: value for key, value in asdict(self.protocol).items() if key not in ("n", "space")}
        return {
            **own,
            **{f"reference_{key}": value for key, value in reference.items()},
            "images": self.protocol.n,
            **asdict(self.protocol.space),
            **protocol,
        }


def scalars(records: Iterable[Record]) -> dict[str, float]:
    """Scores by name, for TensorBoard: `score/fid_n10000_train`, and their spreads under `..._std`."""
    values = {}
    for record in records:
        values[f"score/{record.key}"] = record.value
        if record.spread is not None:
            values[f"score/{record.key}_std"] = record.spread
    return values


def add_to_file(path: Path, records: Sequence[Record]) -> None:
    """Add records to a JSON file; what was measured under the very same conditions before is replaced.

    Raises:
        UserError: the file holds something else than records, or cannot be written.
    """
    new = [record.flat() for record in records]
    replaced = {_identity(record) for record in new}
    kept = [record for record in read_file(path) if _identity(record) not in replaced]
    write_json(path, {"records": [*kept, *new]})


def read_file(path: Path) -> list[dict[str, Value]]:
    """The records in a JSON file, none where there is no file.

    Raises:
        UserError: it holds something else.
    """
    if not path.exists():
        return []
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["records"]
        if not all(isinstance(record, dict) for record in records):
            raise TypeError("records are objects")
        return [_plain(record) for record in records]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged or holds no scores: move it away, then evaluate again") from error


def _plain(record: dict[str, Any]) -> dict[str, Value]:
    """A record, whose values are all single ones.

    Raises:
        TypeError: this one has.
    """
    for value in record.values():
        if value is not None and not isinstance(value, str | int | float):
            raise TypeError("a record holds single values")
    return record


def _identity(record: dict[str, Any]) -> str:
    """All that decides a score, without what came of it."""
    return json.dumps({key: value for key, value in record.items() if key not in ("value", "spread")}, sort_keys=True)


def formatted(record: Record) -> str:
    """A score with the digits that mean something: `14.55`, `0.0123 ± 0.0008`."""
    digits = 2 if abs(record.value) >= 1 else 4 if abs(record.value) >= 0.01 or record.value == 0 else 6
    value = f"{record.value:.{digits}f}" if math.isfinite(record.value) else str(record.value)
    return value if record.spread is None else f"{value} ± {record.spread:.{digits}f}"
