"""Find the shipped configs: groups, choices, keys and what each is about. Imports neither torch nor Hydra."""

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
PACKAGE = "# @package "  # Hydra's line that says where the content of a file belongs
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Shipped(NamedTuple):
    """One config."""

    group: str  # its folder; empty for conf/train.yaml
    name: str
    path: Path


def groups() -> list[str]:
    """The names of the config groups that define a run."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")


def all_groups() -> list[str]:
    """Those groups, and the one that defines where the jobs of a sweep run."""
    return [*groups(), LAUNCHER]


def options(group: str) -> list[str]:
    """The shipped configs of a group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("[!_]*.yaml"))


def choices(group: str) -> list[str]:
    """What a group can be set to: the shipped configs, and launchers from elsewhere."""
    return sorted([*options(group), *(LAUNCHERS if group == LAUNCHER else ())])


def labels() -> list[str]:
    """Every shipped config, such as `experiment/biggan`."""
    return ["train", *(f"{group}/{name}" for group in all_groups() for name in options(group))]


def find(label: str) -> Shipped:
    """Find a config by `experiment/biggan`, also written `experiment=biggan` or with the suffix `.yaml`.

    Raises:
        UserError: There is none.
    """
    wanted = label.removesuffix(".yaml").replace("=", "/", 1)
    known = labels()
    if wanted not in known:
        # A label with a missing or misspelt group is found by its last part.
        same = [one for one in known if one.rpartition("/")[2] == wanted.rpartition("/")[2]]
        hint = did_you_mean(wanted, known) if not same else f"; did you mean {' or '.join(same[:3])}?"
        raise UserError(f"{label}: no such config{hint or '; `cifargan ls` shows them all'}")
    group, _, name = wanted.rpartition("/")
    return Shipped(group, name, conf_dir() / f"{wanted}.yaml")


def first_comment(path: Path) -> str:
    """The first sentence of the comment at the beginning of a config; empty if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(
        lambda line: line.startswith("#"), (line for line in lines if not line.startswith(PACKAGE))
    )
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    # A capital follows the full stop of a sentence, but not that of "et al. 2016".
    return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


def known_keys() -> Iterator[str]:
    """Every dotted key that some shipped config sets, nodes included."""
    for path in conf_dir().rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        group = path.parent.relative_to(conf_dir()).as_posix().replace("/", ".").strip(".")
        package = text.splitlines()[0].removeprefix(PACKAGE).strip() if text.startswith(PACKAGE) else group
        prefix = f"{package}." if package not in ("", "_global_") else ""
        yield from _flat(yaml.load(text, Loader=_LOADER), prefix)  # noqa: S506 - it is a safe one


def _flat(node: Any, prefix: str) -> Iterator[str]:
    for key, child in (node or {}).items():
        if key not in ("defaults", "hydra"):
            yield f"{prefix}{key}"
            if isinstance(child, dict):
                yield from _flat(child, f"{prefix}{key}.")
