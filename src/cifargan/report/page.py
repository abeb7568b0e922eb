"""One page about runs that needs nothing else: no network, no library, no folder beside it."""

import time
from collections.abc import Sequence
from pathlib import Path

from cifargan import __version__
from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.loading import load_generator
from cifargan.progress import Progress
from cifargan.report.charts import chart
from cifargan.report.classes import row_names
from cifargan.report.curves import distance_against_recall, losses, score_lines
from cifargan.report.leaderboard import leaderboard
from cifargan.report.markup import Html, document, element, join
from cifargan.report.pictures import Source, slides, training_grids
from cifargan.report.reading import config_of, sessions, setting, whole
from cifargan.report.run_section import RunPart, section
from cifargan.report.scores import is_distance
from cifargan.report.script import SCRIPT
from cifargan.report.selection import shown_path
from cifargan.report.style import STYLE
from cifargan.report.summary import RunSummary
from cifargan.report.truncations import drawn, left_behind
from cifargan.runs.directory import RunDirectory
from cifargan.untrusted import readable

FIXED = 60_000  # characters of a page with no run
PER_RUN = 80_000  # characters of a run without its pictures, at most about
LEAST = 40_000  # characters of pictures that a run gets however many there are


def write_report(
    runs: Sequence[RunSummary], out: Path, *, root: Path, truncations: Sequence[float], device: str, limit: int
) -> list[str]:
    """Write the page.

    Args:
        runs: what it is about, in this order.
        out: the file.
        root: runs are called by their paths below it.
        truncations: thresholds at which samples are drawn now; empty: those that are there are taken.
        device: where they are drawn.
        limit: bytes of the page at most.

    Returns:
        What was left out, a line each.

    Raises:
        UserError: there is no run, the page would be too large, or it cannot be written.
    """
    if not runs:
        raise UserError("no run is left after these filters: there is nothing to report")
    labels = _labels(runs, root)
    budget: float = limit - FIXED - PER_RUN * len(runs)
    left_out: list[str] = []
    parts: dict[int, RunPart] = {}
    grids = [training_grids(RunDirectory(run.path).samples) for run in runs]
    with Progress(len(runs), label="report", unit="run") as progress:
        # Those with few pictures first: what they do not need is there for the others.
        for done, i in enumerate(sorted(range(len(runs)), key=lambda i: len(grids[i]))):
            share = max(budget / (len(runs) - done), LEAST)
            parts[i], lines = _part(runs[i], labels[i], grids[i], truncations, device, share)
            budget -= parts[i].training.size + parts[i].truncation.size
            left_out += [f"{labels[i]}: {line}" for line in lines]
            progress.update(1)
    content = page([parts[i] for i in range(len(runs))]).encode()
    if len(content) > limit:
        raise UserError(
            f"the page would have {len(content) / 1e6:.1f} MB, more than {limit / 1e6:g}: take fewer runs, or raise --megabytes"
        )
    write_atomically(out, content)
    return left_out


def _labels(runs: Sequence[RunSummary], root: Path) -> list[str]:
    """Names where they tell runs apart, else paths."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [shown_path(run.path, root) for run in runs]


def _part(
    run: RunSummary,
    label: str,
    grids: Sequence[Source],
    truncations: Sequence[float],
    device: str,
    budget: float,
) -> tuple[RunPart, list[str]]:
    directory = RunDirectory(run.path)
    config = config_of(directory)
    notes: list[str] = []
    sources: Sequence[Source] = left_behind(directory)
    if truncations:
        try:
            sources = list(drawn(load_generator(run.path, device=device), truncations))
        except UserError as error:
            notes.append(f"no samples by truncation ({error})")
    shares = 2 if sources and grids else 1
    training, truncation = slides(grids, budget / shares), slides(sources, budget / shares)
    for name, shown in (("training grids", training), ("samples by truncation", truncation)):
        notes += [f"{name}: {shown.left_out}"] if shown.left_out else []
    lines, averaged = losses(directory)
    part = RunPart(
        summary=run,
        label=label,
        row_names=row_names(directory) if training.pictures or truncation.pictures else (),
        image_size=whole(setting(config, "data.image_size")),
        training=training,
        truncation=truncation,
        losses=lines,
        averaged=averaged,
        sessions=sessions(directory),
    )
    return part, notes


def page(parts: Sequence[RunPart]) -> str:
    """The whole document."""
    runs, labels = [part.summary for part in parts], [part.label for part in parts]
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    scored = sum(run.headline is not None for run in runs)
    body = element(
        "body",
        element("a", "Skip to the runs", href="#runs", class_="skip"),
        element(
            "header",
            element("h1", "Training runs"),
            element(
                "p",
                f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {scored} with scores. Made {made} by cifargan {__version__}.",
                class_="soft",
            ),
        ),
        element(
            "main",
            element("h2", "Leaderboard", id="leaderboard"),
            leaderboard(runs, labels),
            _charts(runs, labels),
            element("h2", "Runs", id="runs"),
            *(section(part, i) for i, part in enumerate(parts)),
        ),
        element("p", id="said", class_="hidden-text", role="status", aria_live="polite"),
        element("footer", "This page needs no network and loads nothing. Pictures are WebP copies, made small for it."),
        element("script", Html(SCRIPT)),
    )
    title = f"cifargan: {readable(labels[0]) if len(labels) == 1 else f'{len(labels)} runs'}"
    return document(title, body, style=STYLE, script=SCRIPT)


def _charts(runs: Sequence[RunSummary], labels: Sequence[str]) -> Html:
    distances: list[Html] = []
    others: list[Html] = []
    for i, ((metric, protocol), lines) in enumerate(score_lines(runs, labels).items()):
        title = f"{metric} during training"
        figure = chart(lines, name=f"score-{i}", title=title, x="step", y=metric, note=protocol, marks=True)
        (distances if is_distance(metric) else others).append(figure)
    for i, ((distance, recall, protocol), lines) in enumerate(distance_against_recall(runs, labels).items()):
        distances.append(
            chart(
                lines,
                name=f"recall-{i}",
                title=f"{distance} against {recall}",
                x=f"{recall} (higher is better)",
                y=f"{distance} (lower is better)",
                note=f"{protocol}; a point a truncation",
                marks=True,
            )
        )
    if not distances and not others:
        return Html("")
    more = element(
        "details",
        element("summary", f"Other scores during training ({len(others)})"),
        element("div", *others, class_="charts"),
    )
    shown = [element("h2", "Scores", id="scores"), element("div", *distances, class_="charts")]
    return join([*shown, *([more] if others else [])])
