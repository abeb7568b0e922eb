"""Resume a run: which run is meant, which settings it keeps, and where it continues."""

import logging
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifargan.compose import compose, key_of, quoted, value_of
from cifargan.config import plain
from cifargan.config_files import groups
from cifargan.errors import UserError
from cifargan.runs.checkpoint import CheckpointStore, State
from cifargan.runs.directory import RunDirectory, all_runs, find_run
from cifargan.runs.networks import describe
from cifargan.runs.read import config_in
from cifargan.schema import REFERENCE, shown
from cifargan.untrusted import plain_yaml, readable, refusing, require_no_pipes

# What a file may hold: a setting or a group, and no option; a group's choice, and no path to another config.
OVERRIDE = re.compile(r"(\+{0,2}|~)(?P<key>[A-Za-z_][\w.@/:-]*)(=(?P<value>.*))?", re.DOTALL)
CHOICE = re.compile(r"[\w-]+(/[\w-]+)*|\[([\w-]+(, ?[\w-]+)*)?\]")
MAX_FILE = 100_000  # bytes

MACHINE = ("device", "output_root", "resume")  # settings of the machine or the moment: a run does not keep them
NAMED = 5  # at most so many settings in one line

log = logging.getLogger(__name__)


def with_resume(overrides: list[str], *, sweep: bool) -> list[str]:
    """Where `resume=RUN` is given, put the run's own overrides before those given now, which win.

    With `resume=latest` a new run starts where there is none yet, so a job script can always say it.

    Raises:
        UserError: there is no such run, or its overrides are refused.
    """
    now = [override for override in overrides if key_of(override) != "resume"]
    asked = [value_of(override) for override in overrides if key_of(override) == "resume"]
    if not asked or asked[-1] in ("", "null"):
        return now
    if sweep:
        raise UserError("resume= resumes one run; it does not go with -m")
    root = Path(next((value_of(o) for o in reversed(overrides) if key_of(o) == "output_root"), "outputs"))
    directory = _latest(now, root) if asked[-1] == "latest" else find_run(asked[-1], root)
    if directory is None:
        return now
    require_no_pipes(directory.path)
    where = str(directory.path)
    if REFERENCE in where or "\\" in where:
        raise UserError(f"{where}: a run in a folder with ${{ or a backslash in its name cannot be resumed: rename it")
    given = {key_of(override) for override in now} | {"hydra.run.dir"}
    # A value that refers to others is not looked up again: `keep_settings` keeps what it was.
    replayed = [o for o in overrides_of(directory.path) if key_of(o) not in given and REFERENCE not in o]
    own = [override for override in now if key_of(override) != "hydra.run.dir"]
    return [*replayed, *own, f"resume={quoted(where)}", f"hydra.run.dir={quoted(where)}"]


def _latest(now: list[str], root: Path) -> RunDirectory | None:
    """The newest run that these overrides can mean; None where there is no run yet.

    That is the run in `hydra.run.dir`, if it is given. Otherwise groups, name, seed and init must be those that the run
    was started with: two jobs with one `output_root` must not resume each other's runs.

    Raises:
        UserError: there are runs, but of other recipes.
    """
    fixed = [value_of(override) for override in now if key_of(override) == "hydra.run.dir"]
    if fixed and REFERENCE not in fixed[-1]:
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
        f"resume=latest: no run under {root} was started with {wanted}, and the newest is {runs[-1].path}: name the run "
        "to resume, start this one without resume=latest, or give it a folder of its own by output_root="
    )


def overrides_of(directory: Path) -> list[str]:
    """The overrides that a run was last started with, as they are written. Its folder may come from anyone.

    Raises:
        UserError: they are missing, or set what `cifargan train` does not write there.
    """
    file = _last_start(directory) / "overrides.yaml"
    with refusing(f"{readable(str(file))} is damaged or not of cifargan: start a new run"):
        if file.stat().st_size > MAX_FILE:
            raise ValueError("no command line is that long")
        overrides = plain_yaml(file.read_text(encoding="utf-8"), brackets=1)  # an empty list is written []
        if not isinstance(overrides, list) or not all(isinstance(line, str) for line in overrides):
            raise TypeError("expected a list of strings")
    for override in overrides:
        line = f"{readable(str(file))} sets {readable(override)}"
        match = OVERRIDE.fullmatch(override)
        if match is None:
            raise UserError(f"{line}: not a setting, remove that line")
        if "hydra" in match["key"].lower():  # Hydra's own settings can run code
            raise UserError(f"{line}: Hydra's own settings are not replayed, remove that line")
        chooses = "/" in match["key"] or "@" in match["key"] or match["key"] in groups()
        if chooses and not CHOICE.fullmatch(match["value"] or "null"):  # a path may lead to Hydra's own settings
            raise UserError(f"{line}: a group is chosen by a name, remove that line")
    return overrides


def _last_start(directory: Path) -> Path:
    """The folder with the settings of the last start: `.hydra`, or `.hydra_N` of the last resumption.

    Raises:
        UserError: there is none.
    """
    found = [path for path in directory.glob(".hydra*") if re.fullmatch(r"\.hydra(_[0-9]{1,9})?", path.name)]
    for folder in sorted(found, key=lambda path: int(path.name.partition("_")[2] or 0), reverse=True):
        # A start that was killed at once leaves a folder without the file.
        if (folder / "overrides.yaml").is_file():
            return folder
    raise UserError(f"{directory} has no .hydra/overrides.yaml, so its settings are not known: start a new run")


def keep_settings(config: DictConfig, directory: Path) -> DictConfig:
    """Keep a resumed run's own settings wherever the command line does not change them, also where defaults have changed.

    Args:
        config: what the run's overrides and those given now compose to.
        directory: the run.

    Returns:
        The configuration to train with.

    Raises:
        UserError: the run's configuration is damaged or not of cifargan.
    """
    start = _last_start(directory)
    if not (start / "config.yaml").is_file():
        return config
    replayed = [override for override in overrides_of(directory) if REFERENCE not in override]
    changes: list[str] = []
    kept: dict[str, Any] = merge(plain(config_in(start)), plain(compose(replayed).config), plain(config), changes)
    if changes:
        more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
        log.info("the run keeps its settings where defaults have changed: %s%s", ", ".join(changes[:NAMED]), more)
    return OmegaConf.create(kept)


def merge(then: Any, today: Any, asked: Any, changes: list[str], where: str = "") -> Any:
    """Go through three versions of a setting or of a group of settings.

    Args:
        then: what the run had.
        today: what its overrides compose to today.
        asked: what they compose to together with those given now.
        changes: gets a text for each value of the run that is kept against today's.
        where: the setting.

    Returns:
        `asked` where it differs from `today` or the run does not know the setting; else `then`.
    """
    if not all(isinstance(version, dict) for version in (then, today, asked)):
        if asked == today != then:
            changes.append(f"{where}={readable(shown(then))} ({readable(shown(today))} today)")
        return then if asked == today else asked
    own, default, chosen = (version.get("name") if where else None for version in (then, today, asked))
    if chosen != default:
        return asked  # another part, whose settings only have the same names
    if own != default and asked == today:
        changes.append(f"{where}.name={readable(shown(own))} ({readable(shown(default))} today)")
    if own != default:
        return then if asked == today else asked
    merged = {}
    for key, value in asked.items():
        place = f"{where}.{key}" if where else key
        known = key in then and key in today and place not in MACHINE
        merged[key] = merge(then[key], today[key], value, changes, place) if known else value
    return merged


def newest_checkpoint(directory: RunDirectory, before: dict[str, Any]) -> tuple[Path, State] | None:
    """The checkpoint to resume from and its state; None for a run that has not written any yet.

    Raises:
        UserError: checkpoints were written and none can be used: a new start would throw away what was trained.
    """
    store = CheckpointStore(directory.checkpoints)
    if found := store.newest_whole():
        describe(found[1], found[0])
        return found
    if damaged := store.steps():
        names = ", ".join(path.name for path in damaged)
        raise UserError(
            f"every checkpoint of {directory.path} is damaged ({names}): put back a copy, or start a new run"
        )
    if before.get("status") in ("finished", "interrupted") and not before.get("died"):
        raise UserError(
            f"{directory.path} was trained to step {before.get('step')}, but its checkpoints are gone: put them back, "
            "or start a new run"
        )
    return None


def nothing_left(state: State, config: DictConfig, directory: RunDirectory, before: dict[str, Any]) -> str | None:
    """Why a run has nothing left to train; None where it continues."""
    step = int(state["step"])
    if step >= config.trainer.steps:
        if before.get("status") == "finished":
            return f"is finished (step {step}): raise trainer.steps to continue"
        # Its process ended after the last checkpoint and before it could say so.
        directory.set_status("finished", step=step)
        return f"is trained to its last step ({step}); its final scores: cifargan evaluate {directory.path}"
    then = describe(state, directory.checkpoints).config
    decides = ("evaluator.stop_after", "evaluator.target", "trainer.steps")
    same = all(OmegaConf.select(then, key) == OmegaConf.select(config, key) for key in decides)
    if same and before.get("stopped_early") and before.get("step") == step:
        return f"has ended early (step {step}): change {' or '.join(decides)} to continue"
    return None
