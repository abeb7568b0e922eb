"""Which runs, and in which order."""

import fnmatch
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from cifargan.errors import UserError, did_you_mean
from cifargan.folders import require_no_pipes
from cifargan.report.footnotes import Footnotes
from cifargan.report.reading import config_of, setting
from cifargan.report.summary import STATUSES, RunSummary, summary_of
from cifargan.runs.directory import RunDirectory, all_runs, find_run
from cifargan.untrusted import readable

log = logging.getLogger(__name__)

SORTS: dict[str, Callable[[RunSummary, Footnotes], Any]] = {
    "started": lambda run, _: (run.started, run.last_activity),
    "age": lambda run, _: -run.last_activity,
    "name": lambda run, _: (run.name, run.started),
    "status": lambda run, _: (STATUSES.index(run.status), run.name),
    "step": lambda run, _: run.step,
    "score": lambda run, footnotes: footnotes.order(run.headline),
    "speed": lambda run, _: -(run.images_per_s or 0.0),
    "device": lambda run, _: (run.device, run.name),
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a user wants to see.

    Attributes:
        root: where runs lie.
        names: runs by path, or by path below `root`; empty for all.
        status: the statuses that count; empty for all.
        name: a pattern for the run's name or its path below `root`, `*` for anything; None for any.
        where: settings and the values that they must have, as `key=value`.
        sort: a key of `SORTS`; None: as they were named, or by their start.
        reverse: the other way round.
    """

    root: Path
    names: Sequence[str] = ()
    status: Sequence[str] = ()
    name: str | None = None
    where: Sequence[str] = field(default=())
    sort: str | None = None
    reverse: bool = False

    def runs(self) -> list[RunSummary]:
        """The runs, sorted.

        Raises:
            UserError: there is none, a run or a setting is not known, or a filter is misspelt.
        """
        for wanted in self.status:
            _known(wanted, STATUSES, "--status")
        key = SORTS[_known(self.sort, SORTS, "--sort")] if self.sort else lambda *_: 0
        named = [find_run(name, self.root) for name in self.names]
        found = named or [run for run in all_runs(self.root) if _is_safe(run.path)]
        if not found:
            raise UserError(f"there is no run under {self.root}: train one first (cifargan train), or give --root")
        summaries = [summary_of(run.path) for run in self._where(found)]
        chosen = [run for run in summaries if self._fits(run)]
        footnotes = Footnotes(run.headline for run in chosen if run.headline)
        ordered = sorted(chosen, key=lambda run: key(run, footnotes))
        return ordered[::-1] if self.reverse else ordered

    def _fits(self, run: RunSummary) -> bool:
        if self.status and run.status not in self.status:
            return False
        texts = (run.name, shown_path(run.path, self.root))
        return self.name is None or any(fnmatch.fnmatchcase(part, f"*{self.name}*") for part in texts)

    def _where(self, runs: Sequence[RunDirectory]) -> list[RunDirectory]:
        if not self.where:
            return list(runs)
        configs = {run.path: config_of(run) for run in runs}
        for condition in self.where:
            key, is_there, value = condition.partition("=")
            if not is_there or not key:
                raise UserError(f"--where {condition}: write it as key=value, such as loss.name=hinge")
            keys = {name for config in configs.values() for name in flat(config)}
            if key not in keys and not any(setting(config, key) is not None for config in configs.values()):
                raise UserError(
                    f"--where {key}: no run has such a setting{did_you_mean(key, keys) or _same_end(key, keys)}"
                )
            configs = {path: config for path, config in configs.items() if _has(config, key, value)}
        return [run for run in runs if run.path in configs]


def _is_safe(folder: Path) -> bool:
    """Whether a folder's files end when they are read; one among many that does not is told and passed over."""
    try:
        require_no_pipes(folder)
    except UserError as error:
        log.warning("%s; its run is left out", error)
        return False
    return True


def _known(wanted: str, choices: Any, option: str) -> str:
    if wanted not in choices:
        hint = did_you_mean(wanted, choices) or f"; choose from {', '.join(choices)}"
        raise UserError(f"{option} {wanted}: no such choice{hint}")
    return wanted


def _same_end(key: str, keys: set[str]) -> str:
    near = sorted(name for name in keys if name.split(".")[-1] == key.split(".")[-1])[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _has(config: DictConfig, key: str, value: str) -> bool:
    """Whether a setting has a value, as one would write it on the command line."""
    node = setting(config, key)
    have = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    try:
        wanted = yaml.safe_load(value)
    except yaml.YAMLError:
        wanted = value
    if isinstance(have, int | float) and not isinstance(have, bool):
        try:
            return float(value) == float(have)
        except ValueError:
            return False
    return bool(have == wanted) or str(have) == value


def flat(config: DictConfig, prefix: str = "") -> dict[str, Any]:
    """The settings as `a.b.c` and their plain values."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key!s}"
        if isinstance(value, DictConfig):
            values |= flat(value, f"{name}.")
        else:
            values[name] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return values


def below(path: Path, root: Path) -> Path:
    """A run's path below the root, or the whole of it where it lies elsewhere."""
    whole, top = path.absolute(), root.absolute()
    return whole.relative_to(top) if whole.is_relative_to(top) and whole != top else path


def shown_path(path: Path, root: Path) -> str:
    """The same as a text that is safe on a terminal."""
    return readable(str(below(path, root)))


def ago(seconds: float) -> str:
    """How long ago, in the largest unit that fits: `3 min`, `2 d`."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
