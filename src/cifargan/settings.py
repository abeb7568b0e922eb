"""The settings that belong to no part: those at the root of the configuration, and some under `loss.` and `trainer.`."""

from dataclasses import dataclass, field
from importlib.util import find_spec

from cifargan.errors import UserError, did_you_mean
from cifargan.registry import LOGGER_EXTRAS, LOGGERS
from cifargan.training.precision import PrecisionName
from cifargan.untrusted import readable


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings at the root of the configuration, beside the groups.

    Args:
        name: the folder of the run under `output_root`.
        seed: of every random generator.
        device: where to train.
        precision: number format of the training step.
        deterministic: bit-equal runs, at some cost in speed.
        resume: the run to resume.
        init: the run, checkpoint or exported generator whose networks this run starts from.
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
class TrainerExtras:
    """The settings under `trainer.` that belong to neither `Schedule`, `SpeedSettings` nor the moving average.

    Args:
        freeze_d: blocks of the discriminator's body, from the image on, that stay as `init` has them.
        loggers: names in `LOGGERS`: where a run's scalars go beside metrics.jsonl, which is always written.

    Raises:
        UserError: a negative number; an unknown logger, or one whose extra is not installed.
    """

    freeze_d: int = 0
    loggers: list[str] = field(default_factory=lambda: ["tensorboard", "csv"])

    def __post_init__(self) -> None:
        """Reject what could not be carried out."""
        if self.freeze_d < 0:
            raise UserError(f"trainer.freeze_d={self.freeze_d}: must be at least 0")
        names = [str(name) for name in self.loggers]  # OmegaConf accepts lists within the list
        where = f"trainer.loggers=[{','.join(readable(name) for name in names)}]"
        for name in names:
            if name not in LOGGERS:
                hint = did_you_mean(name, LOGGERS) or f"; choose from {', '.join(LOGGERS)}"
                raise UserError(f"{where}: {readable(name)}: no such logger{hint}")
            if name in LOGGER_EXTRAS and find_spec(name) is None:
                raise UserError(f"{where}: {name} is not installed: pip install 'cifargan[{name}]', or leave it out")
