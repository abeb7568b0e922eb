"""What a run that is gone on with was told, and what it is told now."""

import logging
import re
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from cifargan.compose import key_of, value_of
from cifargan.config import plain
from cifargan.errors import UserError
from cifargan.explain import groups
from cifargan.runs.directory import RunDirectory, all_runs, find_run
from cifargan.runs.read import config_in
from cifargan.schema import shown
from cifargan.untrusted import plain_yaml, readable, refusing, require_no_pipes

# What a file may say: a setting or a group, and no option; a group's choice, and no path to a config of its own.
OVERRIDE = re.compile(r"(\+{0,2}|~)(?P<key>[A-Za-z_][\w.@/:-]*)(=(?P<value>.*))?", re.DOTALL)
CHOICE = re.compile(r"[\w-]+(/[\w-]+)*|\[([\w-]+(, ?[\w-]+)*)?\]")
RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)
MAX_FILE = 100_000  # bytes
MAX_REFERENCES = 8  # each can double a text

MACHINE = ("device", "output_root", "resume")  # settings that belong to the machine, or to the moment
NAMED = 5  # settings that a line tells of

log = logging.getLogger(__name__)


def with_resume(overrides: list[str], *, sweep: bool) -> list[str]:
    """Replay a run's own overrides where `resume=RUN` asks for it; those given now win.

    `resume=latest` is what a job script can say each time: where there is no run yet, it starts one.

    Raises:
        UserError: there is no such run, or its overrides are none that a run of ours keeps.
    """
    now = [override for override in overrides if key_of(override) != "resume"]
    asked = [value_of(override) for override in overrides if key_of(override) == "resume"]
    if not asked or asked[-1] in ("", "null"):
        return now
    if sweep:
        raise UserError("resume= goes on with one run; it does not go with -m")
    root = Path(next((value_of(o) for o in reversed(overrides) if key_of(o) == "output_root"), "outputs"))
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
    fixed = [value_of(override) for override in now if key_of(override) == "hydra.run.dir"]
    if fixed and "${" not in fixed[-1]:
        directory = RunDirectory(Path(fixed[-1]))
        return directory if directory.holds_a_run() else None
    runs = all_runs(root)
    identity = {key: value_of(o) for o in now if (key := key_of(o)) in (*groups(), "name", "seed", "init")}
    for run in reversed(runs):
        theirs = {key_of(override): value_of(override) for override in overrides_of(run.path)}
        if all(theirs.get(key, "0" if key == "seed" else None) == value for key, value in identity.items()):
            return run
    if not runs:
        return None
    wanted = " ".join(f"{key}={value}" for key, value in identity.items())
    raise UserError(
        f"resume=latest: no run under {root} was started with {wanted}, and the newest is {runs[-1].path}: name the one "
        "to go on with, start this one without resume=latest, or give it a folder of its own by output_root="
    )


def overrides_of(directory: Path) -> list[str]:
    """The overrides that a run was last started with: those in `.hydra`, or in the `.hydra_N` of its last resumption.

    Raises:
        UserError: they are missing, or would set what no run of ours keeps.
    """
    # Not resolved: an interpolation is Hydra's to resolve, in the configuration.
    file = _last_start(directory) / "overrides.yaml"
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


def _last_start(directory: Path) -> Path:
    """The folder of the start that is gone on from.

    Raises:
        UserError: there is none.
    """
    found = [path for path in directory.glob(".hydra*") if re.fullmatch(r"\.hydra(_[0-9]{1,9})?", path.name)]
    for folder in sorted(found, key=lambda path: int(path.name.partition("_")[2] or 0), reverse=True):
        # A start that was killed at once leaves a folder without the file.
        if (folder / "overrides.yaml").is_file():
            return folder
    raise UserError(f"{directory} has no .hydra/overrides.yaml, so its settings are not known: start a new run")


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


def keep_settings(config: DictConfig, directory: Path) -> DictConfig:
    """What a run is gone on with: its own settings, and those that this command line sets.

    Its overrides are replayed on the configs of today, whose defaults may be others than those that it began with, and a
    run must not change because cifargan has. So wherever today's command line changes nothing, the run's own value stays.

    Args:
        config: the resolved configuration that the replayed overrides and those given now compose to.
        directory: the run.

    Returns:
        The configuration to train with.

    Raises:
        UserError: the run's configuration is damaged, or none of ours.
    """
    start = _last_start(directory)
    if not (start / "config.yaml").is_file():
        return config
    then = config_in(start)
    today = plain(hydra.compose("train", overrides_of(directory)))
    changes: list[str] = []
    kept: dict[str, Any] = _merged(plain(then), today, plain(config), changes)
    if changes:
        more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
        log.info("the run keeps its settings where today's defaults are others: %s%s", ", ".join(changes[:NAMED]), more)
    return OmegaConf.create(kept)


def _merged(then: Any, today: Any, asked: Any, changes: list[str], where: str = "") -> Any:
    """Go through three versions of a setting, or of a group of settings.

    Args:
        then: what the run had.
        today: what its overrides compose to today.
        asked: what they compose to with those that are given now.
        changes: gets a text for each value of the run's that is kept against today's.
        where: the setting.

    Returns:
        `asked` where it differs from `today`, or the run knows nothing of it; else `then`.
    """
    if not (isinstance(then, dict) and isinstance(today, dict) and isinstance(asked, dict)):
        if asked == today != then:
            changes.append(f"{where}={readable(shown(then))} ({readable(shown(today))} today)")
        return then if asked == today else asked
    if today.get("name") != asked.get("name"):
        return asked  # another thing altogether, which only happens to have settings of the same names
    if where and then.get("name") != today.get("name"):
        # The default is another thing today; of the run's, every setting is its own.
        changes.append(f"{where}.name={readable(shown(then.get('name')))} ({readable(shown(today.get('name')))} today)")
        return then if asked == today else asked
    merged = {}
    for key, value in asked.items():
        place = f"{where}.{key}" if where else key
        known = key in then and key in today and place not in MACHINE
        merged[key] = _merged(then[key], today[key], value, changes, place) if known else value
    return merged
