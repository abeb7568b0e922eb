"""How long a run takes, and how often it does what."""

from dataclasses import dataclass, replace
from typing import Literal

from cifargan import distributed
from cifargan.errors import UserError

COUNTS = (
    *("steps", "batch_size", "d_steps", "accumulate", "devices"),
    *("log_every", "sample_every", "samples_per_class", "checkpoint_every", "keep"),
)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The settings under `trainer.`, but for the moving average.

    Args:
        steps: generator updates in all.
        batch_size: images of each kind in one update.
        d_steps: discriminator updates for each generator update.
        accumulate: micro-batches that an update is split into: less memory, the same batch.
        log_every: steps between log points, the only places where the host waits for the device.
        sample_every: steps between sample grids.
        samples_per_class: fixed latents of each class in a grid.
        sample_batch_norm: which statistics a grid's batch norm has: `standing`, made for the averaged weights from fresh
            batches, or `running`, which cost nothing and lag behind.
        checkpoint_every: steps between checkpoints.
        keep: newest checkpoints to keep, beside the best.
        lr_decay_from: the step from which the learning rates fall linearly to 0 at `steps`; None: constant.
        on_divergence: what to do when a loss, a gradient or a weight is no longer finite: `stop`, or `rollback` to the
            last good state, with new noise and half the learning rates.
        max_rollbacks: how often to do that before the run stops all the same.
        devices: processes on this machine that share each batch, each with a device of its own. Where they were started
            by torchrun, its number counts.
        fits_memory: whether the batch is split as memory asks for, by a trial at the start: `trainer.accumulate=auto`.

    Raises:
        UserError: a number that the loop could not carry out.
    """

    steps: int
    batch_size: int
    d_steps: int
    accumulate: int
    log_every: int
    sample_every: int
    samples_per_class: int
    checkpoint_every: int
    keep: int
    sample_batch_norm: Literal["standing", "running"] = "standing"
    lr_decay_from: int | None = None
    on_divergence: Literal["stop", "rollback"] = "stop"
    max_rollbacks: int = 3
    devices: int = 1
    fits_memory: bool = False

    def __post_init__(self) -> None:
        """Reject what the loop could not carry out."""
        for name, value in vars(self).items():
            if name in COUNTS and value < 1:
                raise UserError(f"trainer.{name}={value}: must be at least 1")
        if self.max_rollbacks < 0:
            raise UserError(f"trainer.max_rollbacks={self.max_rollbacks}: must be at least 0")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"trainer.batch_size={self.batch_size} does not divide into trainer.accumulate={self.accumulate} parts"
            )
        processes = max(self.devices, distributed.world_size())
        if self.micro_batch % processes:
            parts = f"{self.accumulate} parts (trainer.accumulate) for " if self.accumulate > 1 else ""
            raise UserError(
                f"trainer.batch_size={self.batch_size} does not divide into {parts}{processes} devices: choose a multiple "
                f"of {self.accumulate * processes}"
            )
        if self.fits_memory and processes > 1:
            raise UserError("trainer.accumulate=auto works on one device alone: give a number")
        if self.lr_decay_from is not None and not 0 <= self.lr_decay_from <= self.steps:
            raise UserError(
                f"trainer.lr_decay_from={self.lr_decay_from}: must lie between 0 and trainer.steps={self.steps}"
            )

    @property
    def micro_batch(self) -> int:
        """Images of each kind that are in memory at once."""
        return self.batch_size // self.accumulate

    def split_further(self) -> "Schedule | None":
        """The same with micro-batches of half the size or less; None where they are single images."""
        parts = range(2 * self.accumulate, self.batch_size + 1)
        fitting = next((number for number in parts if self.batch_size % number == 0), None)
        return None if fitting is None else replace(self, accumulate=fitting)

    def learning_rate_factor(self, step: int) -> float:
        """The share of the initial learning rates that holds during step `step` (counted from 0).

        A function of the step alone, so a resumed run cannot get it wrong.
        """
        if self.lr_decay_from is None or step < self.lr_decay_from:
            return 1.0
        return (self.steps - step) / (self.steps - self.lr_decay_from)
