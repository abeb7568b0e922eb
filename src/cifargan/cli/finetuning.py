"""`cifargan train init=...`: what a new run takes from an old one, weights and settings."""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf

from cifargan.compose import key_of
from cifargan.distributed import on_rank_zero
from cifargan.errors import UserError
from cifargan.runs.checkpoint import CheckpointStore
from cifargan.runs.directory import find_run
from cifargan.runs.networks import read_networks
from cifargan.schema import section
from cifargan.tensor_file import is_tensor_file
from cifargan.training.finetune import Start

CHOICE = "finetuned"  # the name under which the settings of the init can be chosen
FROM_TRAINER = ("d_steps", "ema")  # what a model's config may bring of the trainer's settings


def starting_point(name: str, root: Path) -> Start:
    """Read the networks that a fine-tuning starts from.

    Args:
        name: a run, a checkpoint, or a file of `cifargan export`.
        root: where runs are looked for.

    Raises:
        UserError: there is none, or it is damaged or not a file of cifargan.
    """
    return Start(networks=read_networks(source(name, root)))


def source(name: str, root: Path) -> Path:
    """The file that `init=name` stands for: the newest checkpoint, where it is a run.

    Raises:
        UserError: there is none.
    """
    if is_tensor_file(name):
        if not Path(name).is_file():
            raise UserError(f"init={name}: there is no such file")
        return Path(name)
    return CheckpointStore(find_run(name, root).checkpoints).find("last")


def with_init(command: list[str]) -> list[str]:
    """Where `init=` is given and no model, choose the model that was trained, and what it was trained by.

    They become a choice of Hydra's own groups, in the place of a shipped one. So Hydra's precedence holds: what a loss
    brings wins over the model's, and the command line wins over all.

    Args:
        command: the program, flags and overrides.

    Returns:
        The same with `model=finetuned`, and `loss=finetuned` where no loss is given.

    Raises:
        UserError: the init cannot be read, or there are several whose settings differ.
    """
    given = {key_of(part): part for part in command[1:] if "=" in part and not part.startswith("-")}
    inits = _values(given.get("init", ""))
    chosen = [_values(given[key]) for key in ("model", "experiment") if key in given]
    if not inits or (chosen and chosen != [[CHOICE]]):
        return command
    root = Path((_values(given.get("output_root", "")) or ["outputs"])[0])
    # A run that goes on has its settings itself, and its init may be gone.
    resumed = _values(given.get("resume", ""))
    checkpoints = [CheckpointStore(Path(run) / "checkpoints") for run in resumed]
    names = resumed if any(store.steps() for store in checkpoints) else inits
    recipes = on_rank_zero(lambda: [_recipe(source(name, root)) for name in names])
    if any(recipe != recipes[0] for recipe in recipes):
        raise UserError(f"init={','.join(names)}: these differ in model, loss or optimizer: start a sweep for each")
    _offer(recipes[0])
    # Those that are replayed say so already.
    return [*command, *(f"{group}={CHOICE}" for group in ("model", "loss") if group not in given)]


def _values(override: str) -> list[str]:
    """What an override sets, each value where it sweeps; none for null, and where Hydra has a line for it itself."""
    try:
        value = OverridesParser.create().parse_override(override).value() if override else None
    except HydraException:
        return []
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    return [str(getattr(one, "text", one)) for one in values if one is not None]


def _recipe(path: Path) -> dict[str, Any]:
    """The settings that go with the networks of a file.

    Raises:
        UserError: some are missing.
    """
    config = read_networks(path).about.config
    parts = {part: OmegaConf.to_container(section(config, part)) for part in ("model", "loss", "optimizer")}
    trainer: dict[str, Any] = {
        key: value
        for key, value in OmegaConf.to_container(section(config, "trainer")).items()  # type: ignore[union-attr]
        if key in FROM_TRAINER
    }
    if isinstance(trainer.get("ema"), dict):
        # It begins with an average worth keeping, not with weights that are to be left behind soon.
        trainer["ema"]["start"] = 0
    return {**parts, "trainer": trainer}


def _offer(recipe: dict[str, Any]) -> None:
    store = ConfigStore.instance()
    store.store(group="optimizer", name=CHOICE, node={"optimizer": recipe["optimizer"]}, package="_global_")
    store.store(group="loss", name=CHOICE, node={"loss": recipe["loss"]}, package="_global_")
    model = {
        "defaults": [{"override /optimizer": CHOICE}, "_self_"],
        "model": recipe["model"],
        "trainer": recipe["trainer"],
    }
    store.store(group="model", name=CHOICE, node=model, package="_global_")
