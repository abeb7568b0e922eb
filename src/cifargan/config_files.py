"""The configs that are shipped, as files: what groups, choices and keys there are.

Shell completion asks this at every press of Tab, so it imports neither torch nor Hydra.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cifargan.errors import UserError, did_you_mean
from cifargan.schema import conf_dir

LAUNCHER = "hydra/launcher"
LAUNCHERS = ("basic", "joblib", "ray", "submitit_local", "submitit_slurm")  # of Hydra and its plugins
GLOBAL = "# @package _global_"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Shipped(NamedTuple):
    """One config.

    Attributes:
        group: its folder; empty for the root of all.
        name: as it is chosen.
        path: the file.
    """

    group: str
    name: str
    path: Path

    @property
    def label(self) -> str:
        """`experiment/biggan`."""
        return f"{self.group}/{self.name}" if self.group else self.name


def groups() -> list[str]:
    """The names of the config groups that decide what a run is."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")


def all_groups() -> list[str]:
    """Those, and the group that decides where the jobs of a sweep run."""
    return [*groups(), LAUNCHER]


def options(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("[!_]*.yaml"))


def choices(group: str) -> list[str]:
    """What a group can be set to: the shipped configs, and launchers from elsewhere."""
    return sorted([*options(group), *(LAUNCHERS if group == LAUNCHER else ())])


def find(label: str) -> Shipped:
    """A config by `experiment/biggan`, also written `experiment=biggan` or with `.yaml` behind.

    Raises:
        UserError: there is none.
    """
    wanted = label.removesuffix(".yaml").replace("=", "/", 1)
    known = ["train", *(f"{group}/{name}" for group in all_groups() for name in options(group))]
    if wanted not in known:
        # Someone who leaves out the group, or spells it wrong, means the last part.
        same = [one for one in known if one.rpartition("/")[2] == wanted.rpartition("/")[2]]
        hint = did_you_mean(wanted, known) if not same else f"; did you mean {' or '.join(same[:3])}?"
        raise UserError(f"{label}: no such config{hint or '; `cifargan ls` shows them all'}")
    group, _, name = wanted.rpartition("/")
    return Shipped(group, name, conf_dir() / f"{wanted}.yaml")


def first_comment(path: Path) -> str:
    """The first sentence of the comment that a config begins with; empty where it begins with none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), (line for line in lines if line.strip() != GLOBAL))
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    # A full stop ends a sentence where a capital follows, which tells it from "et al. 2016".
    return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


def known_keys() -> Iterator[str]:
    """Every dotted key that some shipped config sets."""
    for path in conf_dir().rglob("*.yaml"):
        yield from keys_of(path)


def keys_of(path: Path) -> Iterator[str]:
    """The dotted keys that one shipped config sets, those that hold others included."""
    text = path.read_text(encoding="utf-8")
    group = path.parent.relative_to(conf_dir()).as_posix()
    is_global = group in (".", "experiment", "debug") or "@package _global_" in text
    yield from _flat(yaml.load(text, Loader=_LOADER), "" if is_global else f"{group.replace('/', '.')}.")  # noqa: S506 - it is a safe one


def _flat(node: Any, prefix: str) -> Iterator[str]:
    for key, child in (node or {}).items():
        if key not in ("defaults", "hydra"):
            yield f"{prefix}{key}"
            if isinstance(child, dict):
                yield from _flat(child, f"{prefix}{key}.")
