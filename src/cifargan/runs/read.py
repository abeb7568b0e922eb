"""Read what runs left on disk, without torch: configuration, provenance, log, scores, and a summary of all.

The files may come from anyone. What is missing, damaged or of another type counts as absent; nothing in them runs.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf

from cifargan.errors import UserError
from cifargan.evaluation.records import FeatureSpace, Protocol, Record, ReferenceCard, read_file
from cifargan.runs.directory import RunDirectory, Status
from cifargan.schema import from_file
from cifargan.untrusted import MAX_SHOWN, plain_yaml, readable, require_no_pipes

UNKNOWN = "unknown"
STATUSES = (*get_args(Status), UNKNOWN)
IN_TRAINING = "training"  # the subject of the records that the trainer writes
LOG_POINTS = 10  # whose median is the speed: a single one may include an evaluation
MAX_YAML = 2**20  # bytes; the configuration of a run has a few thousand
MAX_BRACKETS = 1000
MAX_OVERRIDE = 4000  # characters
TAIL = 2**18  # bytes of metrics.jsonl that hold its last log points


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """An integer from 0 on, or None for anything else."""
    found = number(value)
    return None if found is None or found < 0 or found != int(found) else int(found)


def text(value: Any, *, limit: int = MAX_SHOWN) -> str:
    """A string that is safe on a terminal, of about `limit` characters at most; empty for anything else."""
    return readable(value, limit=limit) if isinstance(value, str) else ""


def sessions(directory: RunDirectory) -> list[dict[str, Any]]:
    """The provenance of each start of a run, the first one first."""
    found = directory.read_json("provenance.json").get("sessions")
    return [session for session in found if isinstance(session, dict)] if isinstance(found, list) else []


def config_of(directory: RunDirectory) -> DictConfig:
    """The resolved configuration of the newest start that has a readable one; empty where none has."""
    for folder in _starts(directory.path):
        try:
            return config_in(folder)
        except UserError:
            continue
    return OmegaConf.create({})


def config_in(start: Path) -> DictConfig:
    """The resolved configuration of one start of a run.

    Args:
        start: the start's folder: `.hydra`, `.hydra_1`, ...

    Raises:
        UserError: it is missing, damaged, or not a cifargan configuration.
    """
    file = start / "config.yaml"
    return from_file(_yaml(file), readable(str(file)))


def overrides_of(directory: RunDirectory) -> tuple[str, ...]:
    """The overrides of the newest start."""
    for folder in _starts(directory.path):
        found = _yaml(folder / "overrides.yaml")
        if isinstance(found, list):
            return tuple(text(override, limit=MAX_OVERRIDE) for override in found if isinstance(override, str))
    return ()


def _starts(path: Path) -> list[Path]:
    """`.hydra`, `.hydra_1`, ...: the newest first."""

    def order(folder: Path) -> int:
        suffix = folder.name.removeprefix(".hydra").removeprefix("_")
        return int(suffix) if suffix.isdecimal() else 0

    return sorted(path.glob(".hydra*"), key=order, reverse=True)


def _yaml(path: Path) -> Any:
    """The content of a small YAML file of plain values; None where it cannot be read."""
    try:
        if path.stat().st_size > MAX_YAML:
            return None
        return plain_yaml(path.read_text(encoding="utf-8"), brackets=MAX_BRACKETS)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def setting(config: DictConfig, key: str) -> Any:
    """The value of a dotted key in a configuration; None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping | DictConfig) else None
    return node


def log_points(directory: RunDirectory, *, last: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The steps of metrics.jsonl and what was logged at each; lines that cannot be read are skipped.

    Args:
        directory: the run.
        last: read only this many bytes from the file's end.
    """
    try:
        with directory.metrics.open("rb") as file:
            if last is not None and (size := directory.metrics.stat().st_size) > last:
                file.seek(size - last)
                file.readline()  # most likely the rest of a line
            for line in file:
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(content, dict) and (step := whole(content.get("step"))) is not None:
                    yield step, content
    except OSError:
        return


def record_from(flat: Mapping[str, Any]) -> Record | None:
    """Read a record of evaluation.json, the inverse of `Record.flat`; None if it is not one, or its value not finite."""
    own, protocol = _fields(Record, flat), _fields(Protocol, flat)
    if own["value"] is None or not own["metric"] or own["n"] is None:
        return None
    images = whole(flat.get("images"))
    protocol |= {"n": own["n"] if images is None else images, "space": FeatureSpace(**_fields(FeatureSpace, flat))}
    reference = _fields(ReferenceCard, flat, "reference_")
    return Record(
        **own | {"class_name": own["class_name"] or None},
        better="higher" if flat.get("better") == "higher" else "lower",
        protocol=Protocol(**protocol),
        reference=ReferenceCard(**reference) if reference["name"] else None,
    )


def _fields(kind: type, flat: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The plain fields of a dataclass, read by their types; text is empty and a number None where it is not one."""
    return {name: read(flat.get(prefix + name)) for name, read in _readers(kind).items()}


@cache
def _readers(kind: type) -> dict[str, Callable[[Any], Any]]:
    readers: dict[Any, Callable[[Any], Any]] = {str: text, int: whole, float: number}
    types = {name: next(iter(get_args(hint)), hint) for name, hint in get_type_hints(kind).items()}
    return {name: readers[type_] for name, type_ in types.items() if type_ in readers}


def is_distance(metric: str) -> bool:
    """Whether a metric is a Fréchet distance over all images, by which runs are ranked: lower is better."""
    return metric.startswith(("fid", "fd_")) and not metric.endswith("_gap")


def headline(best: Record | None, final: Sequence[Record]) -> Record | None:
    """The score that ranks a run: a final distance without truncation, else the best in training, else any distance."""
    distances = [score for score in final if is_distance(score.metric)]
    whole_latents = [score for score in distances if score.protocol.truncation is None]
    return next(iter([*whole_latents, *([best] if best else []), *distances]), None)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run. Every text is safe on a terminal (`untrusted.readable`) and must be escaped in HTML.

    Attributes:
        path: its folder.
        name: `name` of its configuration, or its folder's name.
        status: running, finished, interrupted, diverged, failed or unknown; interrupted if its process died.
        started: ISO time of its first start; empty where not known.
        last_activity: time of its last log point or status, in seconds since 1970; 0 where not known.
        step: its last known step.
        steps: `trainer.steps`.
        seed: of its newest start.
        device: of its newest start; empty where not known.
        images_per_s: real images per second, the median of the last log points.
        overrides: of its newest start.
        best: the lowest monitored score in training.
        scores: final scores and those of `cifargan evaluate`, over all classes.
        history: scores in training, in the order of steps, over all classes.
        class_scores: final scores of single classes.
    """

    path: Path
    name: str
    status: str = UNKNOWN
    started: str = ""
    last_activity: float = 0.0
    step: int = 0
    steps: int | None = None
    seed: int | None = None
    device: str = ""
    images_per_s: float | None = None
    overrides: tuple[str, ...] = ()
    best: Record | None = None
    scores: tuple[Record, ...] = ()
    history: tuple[Record, ...] = ()
    class_scores: tuple[Record, ...] = ()

    @property
    def headline(self) -> Record | None:
        """The score that ranks the run."""
        return headline(self.best, self.scores)


def summary_of(directory: Path) -> RunSummary:
    """Read a run's folder. Nothing in it raises; a folder with a pipe or a device in it is not read at all."""
    run, folder_name = RunDirectory(directory), text(directory.absolute().name)
    try:
        require_no_pipes(directory)
    except UserError:
        return RunSummary(path=directory, name=folder_name)
    config, starts, status = config_of(run), sessions(run), run.status()
    newest = starts[-1] if starts else {}
    points = list(log_points(run, last=TAIL))
    speeds = [speed for _, line in points if (speed := number(line.get("speed/images_per_s"))) is not None]
    times = [number(status.get("time")), *(number(line.get("time")) for _, line in points)]
    seeds = whole(newest.get("seed")), whole(setting(config, "seed"))
    history, final = _scores(run, config, finished=status.get("status") == "finished")
    return RunSummary(
        path=directory,
        name=text(setting(config, "name")) or folder_name,
        status=text(status.get("status")) if status.get("status") in STATUSES else UNKNOWN,
        started=text(starts[0].get("started")) if starts else "",
        last_activity=max((moment for moment in times if moment is not None), default=0.0),
        step=max([whole(status.get("step")) or 0, *(step for step, _ in points)]),
        steps=whole(setting(config, "trainer.steps")),
        seed=next((seed for seed in seeds if seed is not None), None),
        device=text(newest.get("device")),
        images_per_s=statistics.median(speeds[-LOG_POINTS:]) if speeds else None,
        overrides=overrides_of(run),
        best=_best(history, setting(config, "evaluator.metrics")),
        scores=tuple(score for score in final if score.class_name is None),
        history=tuple(history),
        class_scores=tuple(score for score in final if score.class_name is not None),
    )


def _scores(directory: RunDirectory, config: DictConfig, *, finished: bool) -> tuple[list[Record], list[Record]]:
    """The scores in training, over all classes and in the order of steps; and those after it."""
    try:
        records = read_file(directory.evaluation)
    except UserError:
        return [], []
    samples, final_samples = (whole(setting(config, f"evaluator.{key}")) for key in ("samples", "final_samples"))
    scores = [score for score in map(record_from, records) if score is not None]
    last = max((score.protocol.step or 0 for score in scores if score.protocol.subject == IN_TRAINING), default=0)
    history, final = [], []
    for score in scores:
        in_training = score.protocol.subject == IN_TRAINING
        is_final = (
            score.protocol.n == final_samples if samples != final_samples else finished and score.protocol.step == last
        )
        if is_final or not in_training:
            final.append(score)
        # A final evaluation with as many samples as the others belongs to the same curve.
        if in_training and score.class_name is None and (samples == final_samples or not is_final):
            history.append(score)
    return sorted(history, key=lambda score: score.protocol.step or 0), final


def _best(history: Sequence[Record], metrics: Any) -> Record | None:
    """The best monitored score among the evaluations of the same kind as the last one.

    Args:
        history: scores in the order of steps.
        metrics: `evaluator.metrics`, of which the first is monitored; None: a distance is.
    """
    first = metrics[0] if isinstance(metrics, Sequence) and metrics else None
    watched = [score for score in history if (score.kind == first if first else is_distance(score.metric))]
    if not watched:
        return None
    # Scores against the training images come first in an evaluation; they are the monitored ones.
    latest = next(score for score in watched if score.protocol.step == watched[-1].protocol.step)
    alike = [score for score in watched if score.group == latest.group]
    best = (min if latest.better == "lower" else max)(alike, key=lambda score: score.value)
    return replace(best, protocol=replace(best.protocol, checkpoint="best-scoring"))
