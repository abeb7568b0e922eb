"""A score as tables and pages show it: a number, and in one short text all that decides what it may stand beside."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from cifargan.errors import UserError
from cifargan.evaluation.records import FeatureSpace, Protocol, Record, ReferenceCard, formatted, read_file
from cifargan.report.reading import number, setting, text, whole
from cifargan.runs.directory import RunDirectory

IN_TRAINING = "training"  # what the trainer gives as the subject of its records


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score of a run.

    Attributes:
        key: its name, `fid_n50000_train`.
        value: finite.
        spread: what is given after the plus-minus sign; None where there is none.
        shown: value and spread with the digits that mean something.
        step: the generator's training step; None where the file does not say.
        protocol: all that decides comparability, in words. Scores may be ranked together if and only if their keys'
            metrics and their protocols are the same.
        metric: the first part of the key, `fid`, `recall`, `fd_lite0_64`.
        truncation: threshold on the latents; None for none.
        curve: the protocol of the whole pass over images, truncation aside: the same for all scores that make one
            curve of quality against variety.
    """

    key: str
    value: float
    spread: float | None
    shown: str
    step: int | None
    protocol: str
    metric: str
    truncation: float | None
    curve: str

    @property
    def group(self) -> tuple[str, str]:
        """What two scores must have in common to be ranked together."""
        return self.metric, self.protocol


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """What a run's evaluation.json says, classes aside.

    Attributes:
        best: the lowest monitored score of its training; None where it was never scored.
        final: scores after training, and those of `cifargan evaluate`.
        history: the scores while it trained, in the order of steps.
    """

    best: Score | None
    final: tuple[Score, ...]
    history: tuple[Score, ...]


def scores_of(directory: RunDirectory, config: DictConfig) -> RunScores:
    """Read a run's scores; none where its file is damaged."""
    try:
        records = read_file(directory.evaluation)
    except UserError:
        records = []
    whole_set = [record for record in records if record.get("class_name") is None]
    ours = [record for record in whole_set if record.get("subject") == IN_TRAINING]
    samples = whole(setting(config, "evaluator.samples"))
    final_samples = whole(setting(config, "evaluator.final_samples"))
    last = max((whole(record.get("step")) or 0 for record in ours), default=0)
    ended = directory.read_json("status.json").get("status") == "finished"

    def is_final(record: dict[str, Any]) -> bool:
        if record.get("subject") != IN_TRAINING:
            return True
        if samples != final_samples:
            return whole(record.get("images")) == final_samples
        return ended and whole(record.get("step")) == last

    watched = [record for record in ours if samples == final_samples or not is_final(record)]
    history = sorted(_known(watched), key=lambda score: score.step or 0)
    return RunScores(
        best=_best(history), final=_known([record for record in whole_set if is_final(record)]), history=tuple(history)
    )


def _known(records: Sequence[dict[str, Any]]) -> tuple[Score, ...]:
    found = map(record_from, records)
    return tuple(score_of(record) for record in found if record is not None)


def _best(history: Sequence[Score]) -> Score | None:
    """The lowest distance among the evaluations that are of the same kind as the last one."""
    distances = [score for score in history if is_distance(score.metric)]
    if not distances:
        return None
    # The training images come first in an evaluation, and are what is monitored.
    latest = next(score for score in distances if score.step == distances[-1].step)
    alike = [score for score in distances if score.group == latest.group]
    best = min(alike, key=lambda score: score.value)
    return replace(best, protocol=f"{best.protocol}, lowest of the training")


def headline(best: Score | None, final: Sequence[Score]) -> Score | None:
    """The one score that stands for a run: the first distance after training without truncation, else the best in it."""
    distances = [score for score in final if is_distance(score.metric)]
    whole_latents = [score for score in distances if score.truncation is None]
    return next(iter([*whole_latents, *([best] if best else []), *distances]), None)


def is_distance(metric: str) -> bool:
    """Whether a metric is a Fréchet distance over all images, by which runs are ranked: lower is better."""
    return metric.startswith(("fid", "fd_")) and not metric.endswith("_gap")


def record_from(flat: dict[str, Any]) -> Record | None:
    """Bring a line of evaluation.json back; None where it is none of ours, or has no finite value."""
    value, metric, n = number(flat.get("value")), text(flat.get("metric")), whole(flat.get("n"))
    if value is None or not metric or n is None:
        return None
    reference = None
    if name := text(flat.get("reference_name")):
        reference = ReferenceCard(
            name=name,
            split=text(flat.get("reference_split")),
            n=whole(flat.get("reference_n")),
            fingerprint=text(flat.get("reference_fingerprint")),
        )
    space = FeatureSpace(**{key: text(flat.get(key)) for key in FeatureSpace.__annotations__})
    images = whole(flat.get("images"))
    protocol = Protocol(
        n=n if images is None else images,
        space=space,
        truncation=number(flat.get("truncation")),
        step=whole(flat.get("step")),
        subject=text(flat.get("subject")),
        checkpoint=text(flat.get("checkpoint")),
        weights=text(flat.get("weights")),
        batch_norm=text(flat.get("batch_norm")),
    )
    return Record(
        metric=metric,
        value=value,
        n=n,
        protocol=protocol,
        spread=number(flat.get("spread")),
        spread_over=text(flat.get("spread_over")),
        reference=reference,
    )


def score_of(record: Record) -> Score:
    """A record as it is shown."""
    return Score(
        key=record.key,
        value=record.value,
        spread=record.spread,
        shown=formatted(record),
        step=record.protocol.step,
        protocol=protocol_of(record),
        metric=record.metric,
        truncation=record.protocol.truncation,
        curve=_in_words(record, images=f"{record.protocol.n:,} images", truncation=""),
    )


def protocol_of(record: Record) -> str:
    """All that decides what a score may be compared with, in one line.

    Steps are compared by their scores, and so are seeds: neither is part of it, but whether a checkpoint was chosen
    for its score is.
    """
    of = "" if record.n == record.protocol.n else f" of {record.protocol.n:,}"
    threshold = record.protocol.truncation
    return _in_words(
        record,
        images=f"{record.n:,}{of} images",
        truncation="no truncation" if threshold is None else f"truncation {threshold:g}",
    ) + (f"; ± over {record.spread_over}" if record.spread_over else "")


def _in_words(record: Record, *, images: str, truncation: str) -> str:
    protocol, space, real = record.protocol, record.protocol.space, record.reference
    parts = [images]
    if real:
        parts.append(f"against {real.name} {real.split} ({f'{real.n:,}' if real.n else '?'}, {real.fingerprint[:8]})")
    parts += [f"{space.extractor} {space.weights_hash[:8]}".strip(), space.resize, space.dtype]
    if protocol.weights:
        parts += [f"{protocol.batch_norm} batch norm", f"{protocol.weights} weights", truncation]
    if protocol.checkpoint == "best":
        parts.append("best checkpoint")
    return ", ".join(part for part in parts if part)
