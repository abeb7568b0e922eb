"""What stands on the command line of `train`, put into the order and the form that Hydra understands."""

from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob
from hydra.errors import HydraException

from cifargan.config_files import choices, groups
from cifargan.errors import UserError, did_you_mean

SWEEP = ("-m", "--multirun")
CFG = ("-c", "--cfg")
INFO = ("-i", "--info")
LIST_GROUPS = ("regularizer",)  # any number of choices at once
CONFIG_DIR = ("--config-dir", "-cd")
WITH_VALUE = (*CFG, "--config-name", "-cn", *CONFIG_DIR, "--package", "-p")
# Those of Hydra's flags that make sense here.
FLAGS = (*SWEEP, *INFO, *WITH_VALUE, "--resolve", "--hydra-help")


def split_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags before the overrides: it does not understand them behind.

    Raises:
        UserError: a flag that is unknown, lacks its value or contradicts another.
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in FLAGS:
            hint = did_you_mean(name, FLAGS) or "; settings are written key=value, see cifargan train --help"
            raise UserError(f"{name}: no such option{hint}")
        if name in WITH_VALUE:
            value = value if equals else next(rest, "")
            flags += [name, value]
            if not value or (name in CFG and value not in ("job", "hydra", "all")):
                raise UserError(f"{name} {value}: {'choose from job, hydra, all' if name in CFG else 'needs a value'}")
        elif name in INFO:
            flags.append(f"--info={value or 'all'}")
        else:
            flags.append(name)
    if {*SWEEP}.intersection(flags) and any(flag in CFG or flag.startswith("--info") for flag in flags):
        raise UserError("-m sweeps, --cfg and --info only show: choose one of them")
    return flags, overrides


def reject_null_groups(overrides: list[str]) -> None:
    """Hydra has no line for a group that is set to nothing, or to anything else that is no name.

    Raises:
        UserError: there is one.
    """
    for override in overrides:
        group = key_of(override).partition("@")[0]
        # A slash is in none but Hydra's own groups.
        chooses = group in groups() or "/" in group
        if chooses and not all(_is_choice(choice, override.partition("=")[0]) for choice in _choices(override)):
            raise UserError(f"{override}: leave it out, or choose from {', '.join(choices(group)) or 'its names'}")


def _is_choice(value: Any, group: str) -> bool:
    """Whether a value names a choice of a group, names several where the group is a list, or sets values within it."""
    if isinstance(value, list):
        return group in LIST_GROUPS and all(isinstance(name, str) for name in value)
    return isinstance(value, str) or (isinstance(value, dict) and group in groups())


def _choices(override: str) -> list[Any]:
    """What an override chooses, as Hydra reads it; nothing where Hydra has a line for it itself."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return []
    value = parsed.value()
    if isinstance(value, Glob) or (parsed.is_delete() and value is None):
        return []
    return value.list if isinstance(value, ChoiceSweep) else [value]


def value_of(override: str) -> str:
    """What an override sets it to, as it is written."""
    return override.partition("=")[2].strip("'\"")


def key_of(override: str) -> str:
    """What an override sets, without `+`, `++` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def quoted(text: str | Path) -> str:
    """A path or text as the value of an override."""
    return "'" + str(text).replace("'", "\\'") + "'"
