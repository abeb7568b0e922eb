"""The settings that are no part's own: those at the root, under `loss.critic` and under `trainer.`."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from cifargan.errors import UserError, did_you_mean
from cifargan.registry import LOGGER_EXTRAS, LOGGERS
from cifargan.schema import arguments, section, without
from cifargan.training.precision import PrecisionName
from cifargan.training.schedule import Schedule
from cifargan.training.speed import Speed
from cifargan.untrusted import readable

SPEED = tuple(Speed.__dataclass_fields__)
TRAINER_OTHERS = ("ema", "freeze_d", "loggers", *SPEED)  # what is under `trainer.` and not in `Schedule`
GROUPS = ("data", "augment", "regularizer", "evaluator", "optimizer", "trainer", "model", "loss")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings at the root of the configuration, beside the groups.

    Args:
        name: the folder of the run under `output_root`.
        seed: of everything that is drawn.
        device: where to train.
        precision: number format of the training step.
        deterministic: bit-equal runs, at some cost in speed.
        resume: the run that this one goes on with.
        init: the run, checkpoint or exported generator whose networks this one starts from.
        output_root: where runs lie.
    """

    name: str
    seed: int = 0
    device: str = "auto"
    precision: PrecisionName = "auto"
    deterministic: bool = False
    resume: str | None = None
    init: str | None = None
    output_root: str = "outputs"

    def __post_init__(self) -> None:
        """Reject a seed that some generator could not take."""
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: must lie between 0 and {2**32 - 1}")


@dataclass(frozen=True, kw_only=True)
class Critic:
    """The settings under `loss.critic`, to which the models' configs refer.

    Args:
        batch_norm: whether a discriminator may bring batch norm.
        spectral_norm: whether it may bring spectral norm.
    """

    batch_norm: bool
    spectral_norm: bool


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """What of the networks is not trained, beside the settings that `Schedule` and `Speed` know under `trainer.`.

    Args:
        freeze_d: blocks of the discriminator's body, from the image on, that stay as `init` has them.
    """

    freeze_d: int = 0

    def __post_init__(self) -> None:
        """Reject what cannot be counted."""
        if self.freeze_d < 0:
            raise UserError(f"trainer.freeze_d={self.freeze_d}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Logging:
    """Where a run's figures go beside metrics.jsonl, which is always written.

    Args:
        loggers: of `LOGGERS`.

    Raises:
        UserError: there is no such logger, or it is an extra that is not installed.
    """

    loggers: list[str] = field(default_factory=lambda: ["tensorboard", "csv"])

    def __post_init__(self) -> None:
        """Reject what would write nothing."""
        names = [str(name) for name in self.loggers]  # OmegaConf lets lists within the list pass
        where = f"trainer.loggers=[{','.join(readable(name) for name in names)}]"
        for name in names:
            if name not in LOGGERS:
                hint = did_you_mean(name, LOGGERS) or f"; choose from {', '.join(LOGGERS)}"
                raise UserError(f"{where}: {readable(name)}: no such logger{hint}")
            if name in LOGGER_EXTRAS and find_spec(name) is None:
                raise UserError(f"{where}: {name} is not installed: pip install 'cifargan[{name}]', or leave it out")


def settings(config: DictConfig) -> Settings:
    """The checked root settings.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    known = {**dict.fromkeys(GROUPS), **Settings.__dataclass_fields__}
    for key in map(str, config):
        if key not in known:
            raise UserError(f"{key}: no such setting{did_you_mean(key, known)}")
    return Settings(**arguments(Settings, without(config, *GROUPS), ""))


def build_schedule(config: DictConfig) -> Schedule:
    """How many updates of which size: what stands under `trainer.` beside the average and the speed."""
    node = without(section(config, "trainer"), *TRAINER_OTHERS)
    fits_memory = node.get("accumulate") == "auto"
    if fits_memory:
        node.accumulate = 1
    return Schedule(**arguments(Schedule, node, "trainer", provided=["fits_memory"]), fits_memory=fits_memory)


def build_freezing(config: DictConfig) -> Freezing:
    """What under `trainer.` says which weights are not trained."""
    others = [str(key) for key in config.trainer if key != "freeze_d"]
    return Freezing(**arguments(Freezing, without(config.trainer, *others), "trainer"))


def build_logging(config: DictConfig) -> Logging:
    """Where the figures go, of what is under `trainer.`."""
    others = [str(key) for key in config.trainer if key != "loggers"]
    return Logging(**arguments(Logging, without(config.trainer, *others), "trainer"))


def build_speed(config: DictConfig) -> Speed:
    """The settings under `trainer.` that make a round fast."""
    others = [str(key) for key in config.trainer if key not in SPEED]
    return Speed(**arguments(Speed, without(config.trainer, *others), "trainer"))


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as dicts, lists and scalars, every interpolation resolved."""
    container = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return {str(key): value for key, value in container.items()}
