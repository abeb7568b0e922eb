"""Write one page about runs that needs nothing else: scores, curves, pictures, settings, environment."""

import io
import re
import shlex
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cifargan import __version__
from cifargan.errors import UserError
from cifargan.evaluation.records import Record, formatted
from cifargan.files import write_atomically
from cifargan.progress import Progress
from cifargan.report.page import Chart, Line, Point, chart, data_uri, evenly, render
from cifargan.runs.directory import RunDirectory
from cifargan.runs.listing import Footnotes, age, differences, flat, shown_path
from cifargan.runs.read import RunSummary, config_of, is_distance, log_points, number, sessions, text, whole
from cifargan.schema import shown
from cifargan.untrusted import readable, refusing

POINTS = 200  # of a loss curve
MAX_LOG = 2**26  # bytes of metrics.jsonl, from its end
MAX_PIXELS = 4096 * 4096  # of a picture that is read
SIDE = 700  # pixels of a picture on the page
PICTURES = 60  # on the page, about
PER_RUN = 6  # pictures of one kind
MOST_ROWS = 30  # of a grid that have names beside them


class Picture(NamedTuple):
    """A picture on the page. Its bytes are encoded again, so that nothing else of its file gets into the page."""

    label: str
    address: str
    width: int
    height: int


def write_report(runs: Sequence[RunSummary], out: Path, *, root: Path) -> None:
    """Write the page.

    Args:
        runs: the runs, in this order.
        out: the file.
        root: runs of equal names are called by their paths below this folder.

    Raises:
        UserError: there is no run, or the file cannot be written.
    """
    if not runs:
        raise UserError("no run is left after these filters: there is nothing to report")
    names = [run.name for run in runs]
    labels = names if len(set(names)) == len(names) else [shown_path(run.path, root) for run in runs]
    footnotes = Footnotes(run.headline for run in runs if run.headline)
    configs = [config_of(RunDirectory(run.path)) for run in runs]
    most = max(1, min(PER_RUN, PICTURES // len(runs)))
    sections = []
    with Progress(len(runs), label="report", unit="run") as progress:
        for run, label in zip(runs, labels, strict=True):
            sections.append(_section(run, label, most))
            progress.update(1)
    page = render(
        "report.html.j2",
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        title=labels[0] if len(runs) == 1 else "Training runs",
        ranking=sorted(range(len(runs)), key=lambda i: footnotes.order(runs[i].headline)),
        footnotes=footnotes,
        labels=labels,
        differences=differences(configs) if len(runs) > 1 else [],
        charts=_score_charts(runs, labels),
        sections=sections,
        age=age,
        formatted=formatted,
    )
    write_atomically(out, page)


def _section(run: RunSummary, label: str, most: int) -> dict[str, Any]:
    """What the template shows of one run, at most that many pictures of a kind."""
    directory = RunDirectory(run.path)
    config, starts = config_of(directory), sessions(directory)
    grids, damaged_grids = _pictures(_training_grids(directory), most)
    sheets, damaged_sheets = _pictures(_generated_sheets(directory), most)
    classes = [text(name) for name in _list(starts[-1].get("classes"))] if starts else []
    return {
        "run": run,
        "label": label,
        "grids": grids,
        "rows": classes if len(classes) <= MOST_ROWS else [],
        "sheets": sheets,
        "unreadable": damaged_grids + damaged_sheets,
        "losses": _losses(directory),
        "facts": _facts(run, starts),
        "scores": [*([run.best] if run.best else []), *run.scores],
        "class_table": _class_table(run.class_scores),
        "settings": {readable(key): shown(value) for key, value in flat(config).items()},
        "command": shlex.join(["cifargan", "train", *run.overrides]) if run.overrides else "",
    }


def _training_grids(run: RunDirectory) -> list[tuple[str, Path]]:
    """The grids of the fixed latents, in the order of their steps."""
    found = {int(m[1]): path for path in run.samples.glob("step_*.png") if (m := re.search(r"_(\d+)$", path.stem))}
    return [(f"step {step:,}", found[step]) for step in sorted(found)]


def _generated_sheets(run: RunDirectory) -> list[tuple[str, Path]]:
    """The overviews that `cifargan sample` wrote, in the order of truncation."""
    found: list[tuple[float, str, Path]] = []
    for folder in sorted((run.path / "generated").glob("*")):
        sheets = [*folder.glob("overview.png"), *sorted(folder.glob("GAN_*_Generated_all.png"))]
        if sheets:
            card = RunDirectory(folder).read_json("samples.json")
            threshold, step = number(card.get("truncation")), whole(card.get("step"))
            parts = ["no truncation" if threshold is None else f"truncation {threshold:g}"]
            parts += [f"step {step:,}"] if step is not None else []
            parts += [text(card.get("weights")), text(card.get("batch_norm"))]
            order = float("inf") if threshold is None else threshold
            found.append((order, ", ".join(filter(None, parts)), sheets[0]))
    return [(label, sheet) for _, label, sheet in sorted(found)]


def _pictures(sources: Sequence[tuple[str, Path]], most: int) -> tuple[list[Picture], int]:
    """At most that many pictures, evenly spread, and the number of those that cannot be read."""
    chosen = []
    for label, path in evenly(sources, most):
        try:
            chosen.append(_encoded(label, path))
        except UserError:
            continue
    return chosen, min(len(sources), most) - len(chosen)


def _encoded(label: str, path: Path) -> Picture:
    """Read a PNG file and make it small.

    Raises:
        UserError: it is not a PNG file, damaged, or too large.
    """
    with refusing(f"{readable(str(path))} cannot be read as a PNG file"), Image.open(path, formats=["PNG"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too large")
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, format="WEBP", quality=82)
    return Picture(label=label, address=data_uri("webp", encoded.getvalue()), width=small.width, height=small.height)


def _losses(run: RunDirectory) -> Chart | None:
    """Every term of the losses over the steps."""
    found: dict[str, list[Point]] = defaultdict(list)
    for step, values in log_points(run, last=MAX_LOG):
        for key, value in values.items():
            if key.startswith("loss/") and (finite := number(value)) is not None:
                found[readable(key.removeprefix("loss/"))].append((float(step), finite))
    together = max((-(-len(points) // POINTS) for points in found.values()), default=1)
    # A term that is not used is logged as 0.
    used = {key: points for key, points in found.items() if any(value for _, value in points)}
    lines = [Line(label=key, points=_means(points, together), style=i) for i, (key, points) in enumerate(used.items())]
    note = f"each point is the mean of {together} log points" if together > 1 else ""
    return chart(lines, title="Losses", x="step", y="loss", note=note)


def _means(points: Sequence[Point], together: int) -> list[Point]:
    """The means of `together` neighbours each; the last mean may be of fewer."""
    parts = [points[i : i + together] for i in range(0, len(points), together)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]


def _score_charts(runs: Sequence[RunSummary], labels: Sequence[str]) -> list[Chart]:
    """Each metric over the steps, distances first; and each distance against recall, a point for each truncation."""
    over_steps: dict[tuple[str, str], dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    better: dict[tuple[str, str], str] = {}
    trade_offs: dict[tuple[str, str, str], dict[int, dict[float, Point]]] = defaultdict(lambda: defaultdict(dict))
    for i, run in enumerate(runs):
        for score in run.history:
            if score.protocol.step is not None:
                over_steps[score.group][i].append((float(score.protocol.step), score.value))
                better[score.group] = score.better
        recalls = {_pass(score): score for score in run.scores if score.metric.startswith("recall")}
        for score in run.scores:
            recall = recalls.get(_pass(score))
            if recall is not None and is_distance(score.metric):
                threshold = score.protocol.truncation
                at = float("inf") if threshold is None else threshold
                group = score.metric, recall.metric, score.conditions(truncation=False)
                trade_offs[group][i][at] = (recall.value, score.value)
    charts = []
    for (metric, conditions), curves in sorted(
        over_steps.items(), key=lambda item: (not is_distance(item[0][0]), item[0])
    ):
        if max(map(len, curves.values())) > 1:
            lines = [Line(label=labels[i], points=points, style=i) for i, points in curves.items()]
            y = f"score ({better[metric, conditions]} is better)"
            charts.append(chart(lines, title=f"{metric} in training", x="step", y=y, note=conditions))
    for (distance, recall_name, conditions), passes in sorted(trade_offs.items()):
        lines = []
        for i, points in passes.items():
            ordered = sorted(points)
            notes = ["none" if at == float("inf") else f"{at:g}" for at in ordered]
            lines.append(Line(label=labels[i], points=[points[at] for at in ordered], notes=notes, style=i))
        title = f"{distance} against {recall_name} by truncation"
        charts.append(
            chart(lines, title=title, x="recall (higher is better)", y="distance (lower is better)", note=conditions)
        )
    return [one for one in charts if one is not None]


def _pass(score: Record) -> tuple[str, float | None, int | None]:
    """Equal for the scores of one pass over images against one reference."""
    return score.conditions(truncation=False), score.protocol.truncation, score.protocol.step


def _class_table(scores: Sequence[Record]) -> list[list[str]]:
    """The scores of single classes: a head, then a row for each class; empty if there are none."""
    columns: dict[str, dict[str, str]] = defaultdict(dict)
    for score in scores:
        threshold = score.protocol.truncation
        split = score.reference.split if score.reference else ""
        parts = [score.metric, split, "" if threshold is None else f"truncation {threshold:g}"]
        columns[" ".join(filter(None, parts))][str(score.class_name)] = formatted(score)
    classes = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name, "") for column in columns.values())] for name in classes]
    return [["class", *columns], *rows] if rows else []


def _facts(run: RunSummary, starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where a run comes from, from the provenance of its newest start."""
    newest = starts[-1] if starts else {}
    git, data, versions = (_dict(newest.get(key)) for key in ("git", "data", "versions"))
    commit = text(git.get("commit"))[:12]
    events = sum(len(_list(start.get("events"))) for start in starts)
    facts = {
        "started": run.started + (f" ({len(starts)} starts)" if len(starts) > 1 else ""),
        "device": run.device,
        "precision": text(newest.get("precision")),
        "images/s": "" if run.images_per_s is None else f"{run.images_per_s:,.0f}",
        "seed": "" if run.seed is None else str(run.seed),
        "data": " ".join(filter(None, map(text, [data.get("name"), *_list(data.get("splits"))]))),
        "fingerprint": text(data.get("fingerprint")),
        "commit": commit + (", with uncommitted changes" if commit and git.get("dirty") else ""),
        "versions": ", ".join(f"{text(key)} {text(value)}" for key, value in versions.items()),
        "platform": text(newest.get("platform")),
        "events": f"{events}, see provenance.json" if events else "",
        "folder": readable(str(run.path)),
    }
    return {key: value for key, value in facts.items() if value}


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
