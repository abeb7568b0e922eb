"""What stands on the command line of `train`, put into the order and the form that Hydra understands."""

import re
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob
from hydra.errors import HydraException

from cifargan.cli.errors import groups, options
from cifargan.errors import UserError, did_you_mean
from cifargan.folders import require_no_pipes
from cifargan.runs import all_runs, find_run
from cifargan.strangers import plain_yaml, readable, refusing
from cifargan.training.run_directory import RunDirectory

SWEEP = ("-m", "--multirun")
CFG = ("-c", "--cfg")
INFO = ("-i", "--info")
WITH_VALUE = (*CFG, "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p")
# Those of Hydra's flags that make sense here.
FLAGS = (*SWEEP, *INFO, *WITH_VALUE, "--resolve", "--hydra-help")
# What a file may say: a setting or a group, and no option; a group's choice, and no path to a config of its own.
OVERRIDE = re.compile(r"(\+{0,2}|~)(?P<key>[A-Za-z_][\w.@/:-]*)(=(?P<value>.*))?", re.DOTALL)
CHOICE = re.compile(r"[\w-]+(/[\w-]+)*")
RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)
MAX_FILE = 100_000  # bytes
MAX_REFERENCES = 8  # each can double a text


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
        # group={key:value} sets values within it, and chooses nothing.
        names = (str, dict) if override.partition("=")[0] in groups() else str
        if chooses and not all(isinstance(choice, names) for choice in _choices(override)):
            raise UserError(f"{override}: leave it out, or choose from {', '.join(options(group)) or 'its names'}")


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


def with_resume(overrides: list[str], *, sweep: bool) -> list[str]:
    """Replay a run's own overrides where `resume=RUN` asks for it; those given now win.

    `resume=latest` is what a job script can say each time: where there is no run yet, it starts one.

    Raises:
        UserError: there is no such run, or its overrides are none that a run of ours keeps.
    """
    now = [override for override in overrides if key_of(override) != "resume"]
    asked = [_value(override) for override in overrides if key_of(override) == "resume"]
    if not asked or asked[-1] in ("", "null"):
        return now
    if sweep:
        raise UserError("resume= goes on with one run; it does not go with -m")
    root = Path(next((_value(o) for o in reversed(overrides) if key_of(o) == "output_root"), "outputs"))
    directory = _latest(now, root) if asked[-1] == "latest" else find_run(asked[-1], root)
    if directory is None:
        return now
    require_no_pipes(directory.path)
    given = {key_of(override) for override in now} | {"hydra.run.dir"}
    replayed = [override for override in overrides_of(directory.path) if key_of(override) not in given]
    own = [override for override in now if key_of(override) != "hydra.run.dir"]
    for override in replayed:
        if RESOLVER.search(override):
            raise UserError(
                f"{readable(override)} is in the overrides of {readable(str(directory.path))} and reads this machine: "
                "give its value on the command line"
            )
    where = str(directory.path)
    if "${" in where or "\\" in where:
        raise UserError(
            f"{where}: no run can be gone on with in a folder with ${{ or a backslash in its name: rename it"
        )
    where = where.replace("'", "\\'")
    return [*replayed, *own, f"resume='{where}'", f"hydra.run.dir='{where}'"]


def _latest(now: list[str], root: Path) -> RunDirectory | None:
    """The newest run that is the one meant by these overrides; None where there is no run yet.

    That is the run in `hydra.run.dir`, if that is given. Otherwise what chooses a recipe, a name or a seed must be what
    the run was started with: two jobs in one folder must not go on with each other's runs.

    Raises:
        UserError: there are runs, but of other recipes.
    """
    fixed = [_value(override) for override in now if key_of(override) == "hydra.run.dir"]
    if fixed and "${" not in fixed[-1]:
        directory = RunDirectory(Path(fixed[-1]))
        return directory if directory.holds_a_run() else None
    runs = all_runs(root)
    identity = {key: _value(o) for o in now if (key := key_of(o)) in (*groups(), "name", "seed", "init")}
    for run in reversed(runs):
        theirs = {key_of(override): _value(override) for override in overrides_of(run.path)}
        if all(theirs.get(key, "0" if key == "seed" else None) == value for key, value in identity.items()):
            return run
    if not runs:
        return None
    wanted = " ".join(f"{key}={value}" for key, value in identity.items())
    raise UserError(
        f"resume=latest: no run under {root} was started with {wanted}, and the newest is {runs[-1].path}: name the one "
        "to go on with, start this one without resume=latest, or give it a folder of its own by output_root="
    )


def _value(override: str) -> str:
    return override.partition("=")[2].strip("'\"")


def key_of(override: str) -> str:
    """What an override sets, without `+`, `++` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def overrides_of(directory: Path) -> list[str]:
    """The overrides that a run was last started with: those in `.hydra`, or in the `.hydra_N` of its last resumption.

    Raises:
        UserError: they are missing, or would set what no run of ours keeps.
    """
    found = [path for path in directory.glob(".hydra*") if re.fullmatch(r"\.hydra(_[0-9]{1,9})?", path.name)]
    folders = sorted(found, key=lambda path: int(path.name.partition("_")[2] or 0))
    # A start that was killed at once leaves a folder without the file.
    file = next((file for folder in reversed(folders) if (file := folder / "overrides.yaml").is_file()), None)
    if file is None:
        raise UserError(f"{directory} has no .hydra/overrides.yaml, so its settings are not known: start a new run")
    # Not resolved: an interpolation is Hydra's to resolve, in the configuration.
    overrides = _listed(file)
    for override in overrides:
        shown = f"{readable(str(file))} sets {readable(override)}"
        match = OVERRIDE.fullmatch(override)
        if match is None:
            raise UserError(f"{shown}: that is no setting, remove that line")
        # A folder that somebody was sent must not be able to run code, and Hydra's own settings can.
        if "hydra" in match["key"].lower():
            raise UserError(f"{shown}: Hydra's own settings are not replayed, remove that line")
        chooses = "/" in match["key"] or "@" in match["key"] or match["key"] in groups()
        if chooses and not CHOICE.fullmatch(match["value"] or "null"):
            # A path would bring a config from anywhere, with settings of Hydra's in it.
            raise UserError(f"{shown}: a group is chosen by a name, remove that line")
    if sum(override.count("${") for override in overrides) > MAX_REFERENCES:
        raise UserError(f"{readable(str(file))} refers to more than {MAX_REFERENCES} settings: write their values")
    return overrides


def _listed(file: Path) -> list[str]:
    """The lines of an overrides.yaml.

    Raises:
        UserError: it is no list of texts, or damaged.
    """
    with refusing(f"{readable(str(file))} is damaged or none of ours: start a new run"):
        if file.stat().st_size > MAX_FILE:
            raise ValueError("no command line is that long")
        # Ours is a list, which may be written [].
        lines = plain_yaml(file.read_text(encoding="utf-8"), brackets=1)
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise TypeError("no list of texts")
        return lines
