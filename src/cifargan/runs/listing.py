"""Choose, sort and tabulate runs: the table and the JSON of `cifargan runs ls`, and the differences of settings."""

import fnmatch
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifargan.errors import UserError, did_you_mean
from cifargan.evaluation.records import Record, formatted
from cifargan.runs.directory import RunDirectory, all_runs, find_run
from cifargan.runs.read import STATUSES, RunSummary, config_of, summary_of
from cifargan.schema import shown
from cifargan.untrusted import readable, require_no_pipes

log = logging.getLogger(__name__)

NOTHING = "-"


class Footnotes:
    """A letter for each protocol among some scores, so that scores of two protocols do not look comparable.

    Args:
        scores: the scores that are shown together.
    """

    def __init__(self, scores: Iterable[Record]) -> None:
        # The most frequent one first; most_common keeps the order of equals.
        counted = Counter(score.group for score in scores).most_common()
        self.letters = {group: _letter(i) for i, (group, _) in enumerate(counted)}

    def of(self, score: Record) -> str:
        """The letter of a score's protocol."""
        return self.letters[score.group]

    def order(self, score: Record | None) -> tuple[float, float]:
        """Sorts by protocol, then the best value first; no score comes last."""
        if score is None:
            return float("inf"), 0.0
        return list(self.letters).index(score.group), score.value if score.better == "lower" else -score.value

    def lines(self) -> list[tuple[str, str]]:
        """Letter and text of every protocol."""
        return [(letter, f"{metric}: {conditions}") for (metric, conditions), letter in self.letters.items()]


def _letter(i: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    rest, last = divmod(i, len(ascii_lowercase))
    return (_letter(rest - 1) if rest else "") + ascii_lowercase[last]


SORTS: dict[str, Callable[[RunSummary, Footnotes], Any]] = {
    "started": lambda run, _: (run.started, run.last_activity),
    "name": lambda run, _: (run.name, run.started),
    "status": lambda run, _: (STATUSES.index(run.status), run.name),
    "step": lambda run, _: run.step,
    "score": lambda run, footnotes: footnotes.order(run.headline),
    "speed": lambda run, _: -(run.images_per_s or 0.0),
}


def select(
    root: Path,
    names: Sequence[str] = (),
    *,
    status: Sequence[str] = (),
    name: str | None = None,
    where: Sequence[str] = (),
    sort: str | None = None,
) -> list[RunSummary]:
    """Read the chosen runs.

    Args:
        root: the folder that holds runs.
        names: runs by path, or by path below `root`; empty for all.
        status: the accepted statuses; empty for all.
        name: a pattern for the run's name or its path below `root`, `*` for any text.
        where: conditions `key=value` on settings.
        sort: a key of `SORTS`; None: as they are named, or by their start.

    Raises:
        UserError: there is no run, or a run or a setting is unknown.
    """
    found = [find_run(one, root) for one in names] or [run for run in all_runs(root) if _is_safe(run.path)]
    if not found:
        raise UserError(f"there is no run under {root}: train one first (cifargan train), or give --root")
    runs = [summary_of(run.path) for run in _where(found, where)]
    runs = [run for run in runs if not status or run.status in status]
    if name is not None:
        pattern = f"*{name}*"
        runs = [r for r in runs if any(fnmatch.fnmatchcase(one, pattern) for one in (r.name, shown_path(r.path, root)))]
    if sort is not None:
        footnotes = Footnotes(run.headline for run in runs if run.headline)
        runs.sort(key=lambda run: SORTS[sort](run, footnotes))
    return runs


def _is_safe(folder: Path) -> bool:
    """Whether reading the folder's files comes to an end; prints a warning if not."""
    try:
        require_no_pipes(folder)
    except UserError as error:
        log.warning("%s; its run is left out", error)
        return False
    return True


def _where(runs: Sequence[RunDirectory], conditions: Sequence[str]) -> list[RunDirectory]:
    """The runs whose settings have the given values."""
    if not conditions:
        return list(runs)
    settings = {run.path: flat(config_of(run)) for run in runs}
    known = {key for one in settings.values() for key in one}
    for condition in conditions:
        key, equals, _ = condition.partition("=")
        try:
            # Reads a value as an override does: 2e-4 is a number, [0.5,0.999] a list.
            wanted = flat(OmegaConf.from_dotlist([condition])) if equals and key else {}
        except (OmegaConfBaseException, yaml.YAMLError):
            wanted = {}
        if not wanted:
            raise UserError(f"--where {condition}: write it as key=value, such as loss.name=hinge")
        if key not in known:
            near = sorted(name for name in known if name.split(".")[-1] == key.split(".")[-1])[:3]
            hint = did_you_mean(key, known) or (f"; did you mean {' or '.join(near)}?" if near else "")
            raise UserError(f"--where {key}: no run has such a setting{hint}")
        settings = {path: one for path, one in settings.items() if wanted.items() <= one.items()}
    return [run for run in runs if run.path in settings]


def flat(config: DictConfig, prefix: str = "") -> dict[str, Any]:
    """The settings as `a.b.c` and their plain values."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, DictConfig):
            values |= flat(value, f"{prefix}{key!s}.")
        else:
            values[f"{prefix}{key!s}"] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return values


def differences(configs: Sequence[DictConfig]) -> list[list[str]]:
    """The settings in which configurations differ: a name and the value in each; `-` where one lacks the setting."""
    settings = [flat(config) for config in configs]
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = [[readable(key), *(shown(one[key]) if key in one else NOTHING for one in settings)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def run_table(runs: Sequence[RunSummary], root: Path) -> tuple[list[list[str]], list[str]]:
    """A row for each run, its score with the letter of its protocol; then a line for each letter."""
    footnotes = Footnotes(run.headline for run in runs if run.headline)
    rows = [["run", "status", "age", "step", "score", "", "images/s", "device"]]
    for run in runs:
        score = run.headline
        rows.append(
            [
                shown_path(run.path, root),
                run.status,
                age(run),
                f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else ""),
                formatted(score) if score else NOTHING,
                footnotes.of(score) if score else "",
                NOTHING if run.images_per_s is None else f"{run.images_per_s:,.0f}",
                run.device or NOTHING,
            ]
        )
    return rows, [f"{letter:2} {text}" for letter, text in footnotes.lines()]


def as_json(runs: Sequence[RunSummary]) -> str:
    """Everything in the summaries, as a list of objects."""
    listed = [{**asdict(run), "path": str(run.path), "headline": run.headline and asdict(run.headline)} for run in runs]
    # Undecodable bytes of file names are surrogates, which no encoder takes: json escapes them.
    return json.dumps(listed, indent=2, allow_nan=False)


def below(path: Path, root: Path) -> Path:
    """A run's path below the root, or the whole path if it is elsewhere."""
    whole, top = path.absolute(), root.absolute()
    return whole.relative_to(top) if whole.is_relative_to(top) and whole != top else path


def shown_path(path: Path, root: Path) -> str:
    """`below` as text that is safe on a terminal."""
    return readable(str(below(path, root)))


def age(run: RunSummary, now: float | None = None) -> str:
    """The time since a run's last activity in the largest unit that fits: `3 min`, `2 d`; `-` where not known."""
    seconds = max((time.time() if now is None else now) - run.last_activity, 0.0)
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}" if run.last_activity else NOTHING
    return f"{seconds:.0f} s"
