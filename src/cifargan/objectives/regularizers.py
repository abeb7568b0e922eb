"""Regularisers of the discriminator: a term added to its loss, computed from its logits alone."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError


def lecam_penalty(real: Tensor, fake: Tensor, real_anchor: Tensor, fake_anchor: Tensor) -> Tensor:
    """Keep each kind of logit near the running mean of the other kind (Tseng et al. 2021).

    mean(relu(real - fake_anchor)^2) + mean(relu(real_anchor - fake)^2). The anchors are crossed: each kind is pulled to
    where the other has been, which bounds how far apart the discriminator may drive the two. The paper writes plain
    squares; its authors' code has the relu, which spares logits that are already beyond the other kind's anchor.

    Args:
        real: (N,) float32 logits of real images.
        fake: (M,) float32 logits of generated images.
        real_anchor: 0-dim float32, running mean of the real logits.
        fake_anchor: 0-dim float32, running mean of the fake logits.

    Returns:
        0-dim float32, not yet weighted.
    """
    return F.relu(real - fake_anchor).square().mean() + F.relu(real_anchor - fake).square().mean()


class Regularizer(nn.Module, ABC):
    """A term of the discriminator's loss; its state lives in buffers, so it is in the checkpoint."""

    @abstractmethod
    def forward(self, real: Tensor, fake: Tensor, step: Tensor) -> Tensor:
        """Compute the term, already weighted.

        Args:
            real: (N,) float logits of real images, in the discriminator's step.
            fake: (M,) float logits of generated images, in the same step.
            step: 0-dim int64 on the logits' device, the number of generator steps done.

        Returns:
            0-dim float32.
        """


class NoRegularizer(Regularizer):
    """Adds nothing."""

    def forward(self, real: Tensor, fake: Tensor, step: Tensor) -> Tensor:
        """Return zero on the logits' device."""
        del fake, step
        return real.new_zeros((), dtype=torch.float32)


class LeCam(Regularizer):
    """LeCam regularisation (Tseng et al. 2021): `weight` times `lecam_penalty`.

    Before `start` the anchors follow the latest batch and the penalty is 0. From then on they are running means: a call
    in training mode with gradients enabled first takes its batch in, then computes the penalty.

    Attributes:
        real_anchor: 0-dim float32 buffer, running mean of the real logits.
        fake_anchor: 0-dim float32 buffer, running mean of the fake logits.
    """

    real_anchor: Tensor
    fake_anchor: Tensor

    def __init__(self, *, weight: float = 0.3, decay: float = 0.99, start: int = 1000) -> None:
        """Set up the term.

        Args:
            weight: Factor of the penalty, at least 0.
            decay: What a running mean keeps of itself at each discriminator step, in [0, 1).
            start: Generator steps before the penalty begins, at least 0.

        Raises:
            UserError: If a setting is out of its range.
        """
        super().__init__()
        if not 0.0 <= weight < math.inf:
            raise UserError(f"weight of LeCam is {weight}: choose a number of at least 0, such as 0.3.")
        if not 0.0 <= decay < 1.0:
            raise UserError(f"decay of LeCam is {decay}: choose a number in [0, 1), such as 0.99.")
        if start < 0:
            raise UserError(f"start of LeCam is {start}: choose a number of steps of at least 0, such as 1000.")
        self.weight = weight
        self.decay = decay
        self.start = start
        self.register_buffer("real_anchor", torch.zeros(()))
        self.register_buffer("fake_anchor", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor, step: Tensor) -> Tensor:
        """Update the anchors where that is due, then return the weighted penalty."""
        real, fake = real.float(), fake.float()
        started = step >= self.start  # stays a tensor: a Python branch on it would wait for the device
        if self.training and torch.is_grad_enabled():
            self._update_anchors(real, fake, started)
        penalty = lecam_penalty(real, fake, self.real_anchor, self.fake_anchor)
        return self.weight * torch.where(started, penalty, 0.0)

    @torch.no_grad()
    def _update_anchors(self, real: Tensor, fake: Tensor, started: Tensor) -> None:
        step_size = torch.where(started, 1.0 - self.decay, 1.0)
        self.real_anchor.lerp_(real.mean(), step_size)
        self.fake_anchor.lerp_(fake.mean(), step_size)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"weight={self.weight}, decay={self.decay}, start={self.start}"
