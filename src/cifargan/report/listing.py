"""Runs as rows: for a terminal, a spreadsheet, another program."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifargan.report.footnotes import Footnotes
from cifargan.report.scores import Score
from cifargan.report.selection import ago, flat, shown_path
from cifargan.report.summary import RunSummary
from cifargan.schema import shown
from cifargan.untrusted import readable

NOTHING = "-"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula when a cell begins with it


def run_table(runs: Sequence[RunSummary], root: Path) -> tuple[list[list[str]], list[str]]:
    """A row a run, its score marked with the letter of its protocol; then a line a letter."""
    footnotes = Footnotes(run.headline for run in runs if run.headline)
    rows = [["run", "status", "age", "step", "score", "", "images/s", "device"]]
    for run in runs:
        score = run.headline
        rows.append(
            [
                shown_path(run.path, root),
                run.status,
                ago(run.age()) if run.last_activity else NOTHING,
                f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else ""),
                score.shown if score else NOTHING,
                footnotes.of(score) if score else "",
                NOTHING if run.images_per_s is None else f"{run.images_per_s:,.0f}",
                run.device or NOTHING,
            ]
        )
    return rows, [f"{letter:2} {text}" for letter, text in footnotes.lines()]


def as_json(runs: Sequence[RunSummary]) -> str:
    """Everything in the summaries, as a list of objects."""
    listed = [{**asdict(run), "path": str(run.path), "headline": _plain(run.headline)} for run in runs]
    # Undecodable bytes of file names are surrogates, which no encoder takes: they stay escaped.
    return json.dumps(listed, indent=2, allow_nan=False)


def _plain(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else asdict(score)


def as_csv(runs: Sequence[RunSummary]) -> str:
    """A line a run and its one score, with the score's protocol."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ("path", "name", "status", "started", "step", "steps", "seed", "device", "images_per_s")
    score_columns = ("key", "value", "spread", "step", "protocol")
    writer.writerow([*columns, *(f"score_{column}" for column in score_columns), "overrides"])
    for run in runs:
        values = [getattr(run, column) for column in columns]
        scores = [getattr(run.headline, column) if run.headline else None for column in score_columns]
        writer.writerow([_cell(value) for value in (*values, *scores, " ".join(run.overrides))])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A value that no spreadsheet runs."""
    if value is None or isinstance(value, int | float):
        return value
    text = readable(str(value), limit=4000)
    return f"'{text}" if text.startswith(FORMULA) else text


def score_rows(runs: Sequence[RunSummary], root: Path) -> tuple[list[list[str]], list[str]]:
    """A row a score and protocol, a column a run; then a line a protocol."""
    every = [score for run in runs for score in _all_scores(run)]
    footnotes = Footnotes(every)
    rows = [["score", "", *(shown_path(run.path, root) for run in runs)]]
    keys = {footnotes.of(score): score.key for score in every}
    for letter in footnotes.letters.values():
        cells = [
            ", ".join(_at_step(score) for score in _all_scores(run) if footnotes.of(score) == letter) for run in runs
        ]
        rows.append([keys[letter], letter, *(cell or NOTHING for cell in cells)])
    return rows, [f"{letter:2} {text}" for letter, text in footnotes.lines()]


def _all_scores(run: RunSummary) -> tuple[Score, ...]:
    return (*([run.best] if run.best else []), *run.scores)


def _at_step(score: Score) -> str:
    return score.shown if score.step is None else f"{score.shown} @{score.step:,}"


def differences(one: DictConfig, other: DictConfig) -> list[tuple[str, str, str]]:
    """The settings in which two configurations differ, with both values; `-` where a setting is not there."""
    left, right = flat(one), flat(other)
    keys = [*left, *(key for key in right if key not in left)]

    def value(side: dict[str, Any], key: str) -> str:
        return shown(side[key]) if key in side else NOTHING

    return [
        (readable(key), value(left, key), value(right, key))
        for key in keys
        if (key in left) != (key in right) or left.get(key) != right.get(key)
    ]
