"""What stands on the command line of `train`, put into the order and the form that Hydra understands."""

from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from cifargan.cli.errors import groups, options
from cifargan.errors import UserError, did_you_mean
from cifargan.runs import find_run

SWEEP = ("-m", "--multirun")
CFG = ("-c", "--cfg")
INFO = ("-i", "--info")
WITH_VALUE = (*CFG, "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p")
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
    """Hydra has no line for a group that is set to nothing.

    Raises:
        UserError: there is one.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if key in groups() and value == "null":
            raise UserError(f"{override}: leave it out, or choose from {', '.join(options(key))}")


def with_resume(overrides: list[str], *, sweep: bool) -> list[str]:
    """Replay a run's own overrides where `resume=RUN` asks for it; those given now win.

    Raises:
        UserError: there is no such run, or its overrides are none that a run of ours keeps.
    """
    now = [override for override in overrides if key_of(override) != "resume"]
    asked = [override.partition("=")[2].strip("'\"") for override in overrides if key_of(override) == "resume"]
    if not asked or asked[-1] in ("", "null"):
        return now
    if sweep:
        raise UserError("resume= goes on with one run; it does not go with -m")
    root = next((o.partition("=")[2] for o in overrides if o.startswith("output_root=")), "outputs")
    directory = find_run(asked[-1], Path(root))
    given = {key_of(override) for override in now}
    replayed = [override for override in overrides_of(directory.path) if key_of(override) not in given]
    where = str(directory.path).replace("'", "\\'")
    return [*replayed, *now, f"resume='{where}'", f"hydra.run.dir='{where}'"]


def key_of(override: str) -> str:
    """What an override sets, without `+`, `++` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def overrides_of(directory: Path) -> list[str]:
    """The overrides that a run was last started with: those in `.hydra`, or in the `.hydra_N` of its last resumption.

    Raises:
        UserError: they are missing, or would set what no run of ours keeps.
    """
    folders = sorted(directory.glob(".hydra*"), key=lambda path: int(path.name.partition("_")[2] or 0))
    if not folders or not (file := folders[-1] / "overrides.yaml").is_file():
        raise UserError(f"{directory} has no .hydra/overrides.yaml, so its settings are not known: start a new run")
    # Not resolved: an interpolation is Hydra's to resolve, in the configuration.
    overrides = [str(override) for override in cast(list[str], OmegaConf.to_container(OmegaConf.load(file)))]
    for override in overrides:
        # A folder that somebody was sent must not be able to run code, and Hydra's own settings can.
        if "hydra" in key_of(override):
            raise UserError(f"{file} sets {override}: Hydra's own settings are not replayed, remove that line")
    return overrides
