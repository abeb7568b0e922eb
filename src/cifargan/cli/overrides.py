"""What stands on the command line of `train`, put into the order and the form that Hydra understands."""

from pathlib import Path

from omegaconf import OmegaConf

from cifargan.errors import UserError
from cifargan.runs import find_run


def split_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags before the overrides: it does not understand them behind."""
    flags: list[str] = []
    overrides: list[str] = []
    with_value = {"--cfg", "-c", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p", "--info", "-i"}
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("-"):
            flags.append(argument)
            if argument in with_value:
                flags += [value for value in [next(rest, None)] if value is not None]
        else:
            overrides.append(argument)
    return flags, overrides


def with_resume(overrides: list[str], *, sweep: bool) -> list[str]:
    """Replay a run's own overrides where `resume=RUN` asks for it; those given now win."""
    asked = [override.partition("=")[2] for override in overrides if override.startswith("resume=")]
    if not asked or asked[-1] in ("", "null"):
        return overrides
    if sweep:
        raise UserError("resume= goes on with one run; it does not go with -m")
    root = next((o.partition("=")[2] for o in overrides if o.startswith("output_root=")), "outputs")
    directory = find_run(asked[-1].strip("'\""), Path(root))
    before = list(OmegaConf.load(newest_config_folder(directory.path) / "overrides.yaml"))
    now = [override for override in overrides if not override.startswith("resume=")]
    given = {key_of(override) for override in now}
    replayed = [str(override) for override in before if key_of(str(override)) not in given]
    where = str(directory.path).replace("'", "\\'")
    return [*replayed, *now, f"resume='{where}'", f"hydra.run.dir='{where}'"]


def key_of(override: str) -> str:
    """What an override sets, without `+`, `++` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def newest_config_folder(directory: Path) -> Path:
    """`.hydra`, or the `.hydra_N` of the last resumption.

    Raises:
        UserError: the folder is missing.
    """
    folders = sorted(directory.glob(".hydra*"), key=lambda path: int(path.name.partition("_")[2] or 0))
    if not folders:
        raise UserError(f"{directory} has no .hydra folder, so its settings are not known: start a new run")
    return folders[-1]
