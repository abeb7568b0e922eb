"""Reads what a run's folder holds, however damaged or foreign: what cannot be read counts as not there."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from cifargan.errors import UserError
from cifargan.runs.directory import RunDirectory
from cifargan.schema import from_file
from cifargan.untrusted import MAX_SHOWN, plain_yaml, readable

MAX_YAML = 2**20  # bytes; ours have a few thousand
MAX_BRACKETS = 1000  # ours have some for empty lists
MAX_OVERRIDE = 4000  # characters
TAIL = 2**18  # bytes of metrics.jsonl that hold its last log points, also with long records between them


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """A whole number from 0 on, or None for anything else."""
    found = number(value)
    return None if found is None or found < 0 or found != int(found) else int(found)


def text(value: Any, *, limit: int = MAX_SHOWN) -> str:
    """A text that is safe on a terminal, at most about `limit` characters of it; empty for anything else."""
    return readable(value, limit=limit) if isinstance(value, str) else ""


def sessions(directory: RunDirectory) -> list[dict[str, Any]]:
    """What each start of a run left in its provenance, the first one first."""
    found = directory.read_json("provenance.json").get("sessions")
    return [session for session in found if isinstance(session, dict)] if isinstance(found, list) else []


def config_of(directory: RunDirectory) -> DictConfig:
    """The resolved configuration of the newest start; empty where there is none that can be read."""
    for folder in _starts(directory.path):
        try:
            return config_in(folder)
        except UserError:
            continue
    return OmegaConf.create({})


def config_in(start: Path) -> DictConfig:
    """The resolved configuration of one start of a run.

    Args:
        start: the start's folder, `.hydra` or one of its successors.

    Raises:
        UserError: there is none, or it is damaged, or none of ours.
    """
    file = start / "config.yaml"
    return from_file(_yaml(file), readable(str(file)))


def overrides_of(directory: RunDirectory) -> tuple[str, ...]:
    """What the newest start was asked for beyond the shipped configuration."""
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
    """The content of a small YAML file of plain values; None where there is none."""
    try:
        if path.stat().st_size > MAX_YAML:
            return None
        return plain_yaml(path.read_text(encoding="utf-8"), brackets=MAX_BRACKETS)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def setting(config: DictConfig, key: str) -> Any:
    """A plain value of a configuration by its dotted key; None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping | DictConfig) else None
    return node


def lines(path: Path, *, last: int | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a file with one JSON object a line; a line that is none is passed over.

    Args:
        path: the file.
        last: read that many bytes from its end alone.
    """
    try:
        with path.open("rb") as file:
            if last is not None and (size := path.stat().st_size) > last:
                file.seek(size - last)
                file.readline()  # most likely the end of a line
            for line in file:
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(content, dict):
                    yield content
    except OSError:
        return


def log_points(directory: RunDirectory, *, last: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The steps of `metrics.jsonl` and what was logged at each."""
    for line in lines(directory.metrics, last=last):
        step = whole(line.get("step"))
        if step is not None:
            yield step, line
