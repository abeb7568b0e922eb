"""Signs of a collapse, seen early and said once."""

import logging
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)

FLAT = 0.05  # relative range of the generator's loss that counts as no progress
POOR = 0.1  # share of the real images' spread below which the samples are all alike
POOR_GRIDS = 3  # such grids in a row before a run that never was better is called collapsed: a young one starts alike


def spread(images: Tensor) -> float:
    """How much images differ: the standard deviation over the batch, averaged over the pixels; 0 for a single image.

    Args:
        images: (N, 3, H, W) uint8.
    """
    return float(images.float().std(dim=0, correction=0).mean())


class CollapseWatch:
    """Looks at what is logged anyway and warns once for each kind of collapse.

    Args:
        real_spread: `spread` of a batch of real images.
        patience: logged windows in a row that must look the same before it warns.
    """

    def __init__(self, *, real_spread: float, patience: int = 10) -> None:
        self.real_spread = real_spread
        self.patience = patience
        self.generator_losses: list[float] = []
        self.once_diverse = False
        self.poor_grids = 0
        self.warned: list[str] = []

    def look_at_losses(self, generator_loss: float, step: int, *, won: bool) -> None:
        """A discriminator that is always right (`won`), and a generator that gets nowhere."""
        self.generator_losses = [*self.generator_losses, generator_loss] if won else []
        if len(self.generator_losses) < self.patience:
            return
        self.generator_losses = self.generator_losses[-self.patience :]
        low, high = min(self.generator_losses), max(self.generator_losses)
        if high - low <= FLAT * max(abs(low), abs(high)):
            self._warn(
                "discriminator",
                f"step {step}: the discriminator has been right about every image for {self.patience} logs and the "
                "generator's loss is flat: the generator learns nothing. Try regularizer=lecam, augment=diffaugment, a "
                "lower optimizer.discriminator.lr or fewer trainer.d_steps",
            )

    def look_at_samples(self, images: Tensor, step: int) -> None:
        """Samples (N, 3, H, W) uint8 from different latents that hardly differ, and did before or never will."""
        poor = len(images) > 1 and spread(images) < POOR * self.real_spread
        self.poor_grids = self.poor_grids + 1 if poor else 0
        self.once_diverse = self.once_diverse or not poor
        if poor and (self.once_diverse or self.poor_grids >= POOR_GRIDS):
            self._warn(
                "samples",
                f"step {step}: the samples hardly differ from one another (spread {spread(images):.1f} against "
                f"{self.real_spread:.1f} of the real images): the generator has collapsed. Go back to an earlier "
                "checkpoint, or try another seed, loss=hinge, augment=diffaugment or a lower learning rate",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self.warned:
            self.warned.append(kind)
            log.warning(message)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know so as not to warn twice."""
        return {
            "generator_losses": self.generator_losses,
            "once_diverse": self.once_diverse,
            "poor_grids": self.poor_grids,
            "warned": self.warned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.generator_losses = [float(value) for value in state["generator_losses"]]
        self.once_diverse = bool(state["once_diverse"])
        self.poor_grids = int(state["poor_grids"])
        self.warned = [str(kind) for kind in state["warned"]]
