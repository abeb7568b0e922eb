"""From overrides to a configuration, with Hydra: the same for the command line, Python, sweeps and searches."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifargan.config import plain
from cifargan.config_files import choices, groups
from cifargan.distributed import on_rank_zero
from cifargan.errors import UserError
from cifargan.explain import explain
from cifargan.runs.checkpoint import CheckpointStore
from cifargan.runs.directory import find_run
from cifargan.runs.networks import read_networks
from cifargan.schema import conf_dir, section
from cifargan.tensor_file import is_tensor_file

LIST_GROUPS = ("regularizer",)  # any number of choices at once
INIT = "finetuned"  # the name under which the model and the loss of `init` are chosen
FROM_TRAINER = ("d_steps", "ema")  # the trainer's settings that go with a model

# The root config, and overrides of Hydra's, of every composition within `own_hydra`.
_root: ContextVar[tuple[str, tuple[str, ...]]] = ContextVar("root", default=("train", ()))


class Composed(NamedTuple):
    """What overrides stand for.

    Attributes:
        config: the configuration, without interpolations.
        directory: the folder of the run.
        overrides: those that are settings, without Hydra's own and `resume`.
    """

    config: DictConfig
    directory: Path
    overrides: list[str]


@contextmanager
def own_hydra(config_dir: str | Path | None = None, config_name: str = "train") -> Iterator[None]:
    """While entered, Hydra composes the shipped configs and those in `config_dir`; afterwards it is as it was.

    Args:
        config_dir: a folder with configs of your own.
        config_name: the root config, which may lie in that folder.

    Raises:
        UserError: there is no such folder.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: there is no such folder")
    before = GlobalHydra.instance().hydra
    extra = (
        () if config_dir is None else (f"hydra.searchpath=[{quoted('file://' + str(Path(config_dir).absolute()))}]",)
    )
    token = _root.set((config_name, extra))
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="train"):
            yield
    finally:
        _root.reset(token)
        GlobalHydra.instance().hydra = before


@contextmanager
def one_line_errors() -> Iterator[None]:
    """While entered, an error of Hydra or OmegaConf becomes a `UserError` of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def compose(overrides: list[str]) -> Composed:
    """Compose what `cifargan train OVERRIDES` trains, with the configs of `own_hydra` or of Hydra's running task.

    Raises:
        UserError: Hydra cannot compose it.
    """
    if not GlobalHydra.instance().is_initialized():
        with own_hydra():
            return compose(overrides)
    name, extra = _root.get()
    with one_line_errors():
        whole = hydra.compose(name, [*extra, *overrides], return_hydra_config=True)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(whole)  # the run's name refers to Hydra's choices
        try:
            directory = Path(whole.hydra.run.dir).absolute()
            own = plain(OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]))
        finally:
            HydraConfig.instance().cfg = before
        given = [override for override in whole.hydra.overrides.task if key_of(override) != "resume"]
        return Composed(OmegaConf.create(own), directory, given)


def key_of(override: str) -> str:
    """What an override sets, without `+`, `++` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def value_of(override: str) -> str:
    """The value that an override sets, as it is written, without quotes around it."""
    return override.partition("=")[2].strip("'\"")


def quoted(text: str | Path) -> str:
    """A path or text as the value of an override."""
    return "'" + str(text).replace("'", "\\'") + "'"


def reject_null_groups(overrides: list[str]) -> None:
    """Check that groups are set to names: Hydra reports anything else in terms of its own code.

    Raises:
        UserError: a group is set to nothing, or to a value that is no name.
    """
    for override in overrides:
        group = key_of(override).partition("@")[0]
        chooses = group in groups() or "/" in group  # only Hydra's own groups have a slash
        if chooses and not all(_is_choice(choice, override.partition("=")[0]) for choice in _parsed(override)):
            raise UserError(f"{override}: leave it out, or choose from {', '.join(choices(group)) or 'its names'}")


def _is_choice(value: Any, group: str) -> bool:
    """Whether a value names a choice of a group, names several where the group is a list, or sets values within it."""
    if isinstance(value, list):
        return group in LIST_GROUPS and all(isinstance(name, str) for name in value)
    return isinstance(value, str) or (isinstance(value, dict) and group in groups())


def _parsed(override: str) -> list[Any]:
    """The values that an override sets, several where it sweeps; none where Hydra itself reports what is wrong."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return []
    value = parsed.value()
    if isinstance(value, Glob) or (parsed.is_delete() and value is None):
        return []
    return value.list if isinstance(value, ChoiceSweep) else [value]


def with_init(overrides: list[str]) -> list[str]:
    """Where `init` is given and no model, choose the model that was trained, and the loss and optimiser it had.

    They become a choice of Hydra's own groups beside the shipped ones. So Hydra's precedence holds: what a loss brings
    wins over the model's settings, and the command line wins over all.

    Returns:
        The overrides with `model=finetuned`, and `loss=finetuned` where no loss is given.

    Raises:
        UserError: the init cannot be read, or there are several whose settings differ.
    """
    given = {key_of(override): override for override in overrides if "=" in override}

    def values(key: str) -> list[str]:
        found = _parsed(given[key]) if key in given else []
        return [str(getattr(one, "text", one)) for one in found if one is not None]

    names, root = values("init"), Path((values("output_root") or ["outputs"])[0])
    if not names or [*values("model"), *values("experiment")] not in ([], [INIT]):
        return overrides
    # A resumed run has its settings itself, and its init may be gone.
    if any(CheckpointStore(Path(run) / "checkpoints").steps() for run in values("resume")):
        names = values("resume")
    recipes = on_rank_zero(lambda: [_recipe(init_file(name, root)) for name in names])
    if any(recipe != recipes[0] for recipe in recipes):
        raise UserError(f"init={','.join(names)}: these differ in model, loss or optimizer: start a sweep for each")
    for group, node in recipes[0].items():
        ConfigStore.instance().store(group=group, name=INIT, node=node, package="_global_")
    # A resumed run's own overrides choose them already.
    return [*overrides, *(f"{group}={INIT}" for group in ("model", "loss") if group not in given)]


def init_file(name: str, root: Path) -> Path:
    """The file that `init=name` stands for: a file as it is, of a run the newest checkpoint.

    Raises:
        UserError: there is none.
    """
    if is_tensor_file(name):
        if not Path(name).is_file():
            raise UserError(f"init={name}: there is no such file")
        return Path(name)
    return CheckpointStore(find_run(name, root).checkpoints).find("last")


def _recipe(path: Path) -> dict[str, dict[str, Any]]:
    """The settings that go with the networks of a file, for each group of configs.

    Raises:
        UserError: some are missing.
    """
    config = read_networks(path).about.config
    model, loss, optimizer = (plain(section(config, part)) for part in ("model", "loss", "optimizer"))
    trainer = {key: value for key, value in plain(section(config, "trainer")).items() if key in FROM_TRAINER}
    if isinstance(trainer.get("ema"), dict):
        trainer["ema"]["start"] = 0  # the average is worth keeping from the first step
    choose_optimizer = [{"override /optimizer": INIT}, "_self_"]
    return {
        "optimizer": {"optimizer": optimizer},
        "loss": {"loss": loss},
        "model": {"defaults": choose_optimizer, "model": model, "trainer": trainer},
    }
