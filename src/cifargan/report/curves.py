"""Series out of what a run logged and of its scores."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from cifargan.report.charts import Line, Point
from cifargan.report.reading import log_points, number
from cifargan.report.scores import Score, is_distance
from cifargan.report.summary import RunSummary
from cifargan.runs.directory import RunDirectory

POINTS = 200  # of a line; more cannot be told apart
MOST = 2**26  # bytes of metrics.jsonl, from its end
LOSSES = {"loss/discriminator": "discriminator", "loss/generator": "generator"}


def losses(run: RunDirectory) -> tuple[list[Line], int]:
    """A line for each network's loss, and how many log points one point of it is the mean of."""
    found: dict[str, list[Point]] = defaultdict(list)
    for step, values in log_points(run, last=MOST):
        for key in LOSSES:
            if (value := number(values.get(key))) is not None:
                found[key].append((float(step), value))
    together = max((len(points) + POINTS - 1) // POINTS for points in found.values()) if found else 1
    lines = [
        Line(label=LOSSES[key], points=means(found[key], together), style=i)
        for i, key in enumerate(LOSSES)
        if found[key]
    ]
    return lines, together


def means(points: Sequence[Point], together: int) -> list[Point]:
    """The means of that many neighbours each; the last mean may be of fewer."""
    parts = [points[i : i + together] for i in range(0, len(points), together)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]


def score_lines(runs: Sequence[RunSummary], labels: Sequence[str]) -> dict[tuple[str, str], list[Line]]:
    """For each metric and protocol a line a run, distances first; those with but one point in every run are left out."""
    found: dict[tuple[str, str], dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for i, run in enumerate(runs):
        for score in run.history:
            if score.step is not None:
                found[score.group][i].append((float(score.step), score.value))
    grown = {group: runs for group, runs in found.items() if max(map(len, runs.values())) > 1}
    return {
        group: [Line(label=labels[i], points=points, style=i) for i, points in grown[group].items()]
        for group in sorted(grown, key=lambda group: (not is_distance(group[0]), group))
    }


def distance_against_recall(
    runs: Sequence[RunSummary], labels: Sequence[str]
) -> dict[tuple[str, str, str], list[Line]]:
    """For each distance, recall and protocol a line a run through its truncations: what is better is at the lower right."""
    found: dict[tuple[str, str, str], dict[int, list[tuple[Point, str]]]] = defaultdict(lambda: defaultdict(list))
    for i, run in enumerate(runs):
        scores = run.scores if any(_is_recall(score) for score in run.scores) else run.history[-MANY:]
        # Within one pass over images there is one score of each kind against one reference.
        recalls = {_pass(score): score for score in scores if _is_recall(score)}
        for distance in scores:
            recall = recalls.get(_pass(distance))
            if recall is not None and is_distance(distance.metric):
                group = distance.metric, recall.metric, distance.curve
                note = "" if distance.truncation is None else f"{distance.truncation:g}"
                found[group][i].append(((recall.value, distance.value), note))
    return {
        group: [_through(labels[i], points, i) for i, points in lines.items()] for group, lines in sorted(found.items())
    }


MANY = 20  # scores of one evaluation while a run trains, at most


def _is_recall(score: Score) -> bool:
    return score.metric.startswith("recall")


def _pass(score: Score) -> tuple[str, float | None, int | None]:
    return score.curve, score.truncation, score.step


def _through(label: str, points: list[tuple[Point, str]], style: int) -> Line:
    ordered = sorted(points, key=lambda point: float(point[1] or "inf"))
    return Line(
        label=label, points=[point for point, _ in ordered], notes=[note or "none" for _, note in ordered], style=style
    )
