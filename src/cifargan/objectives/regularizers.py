"""Regularisers of the discriminator: a term added to its loss, computed from its logits."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.distributed import all_reduce_mean, draw_shard
from cifargan.errors import UserError
from cifargan.objectives.augment import random_translation


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

    def views(self, x: Tensor) -> list[Tensor]:
        """Other views of the real images (N, 3, H, W) that the discriminator is to judge as well; most need none."""
        del x
        return []

    @abstractmethod
    def forward(self, real: Tensor, fake: Tensor, step: Tensor, *views: Tensor) -> Tensor:
        """Compute the term, already weighted.

        Args:
            real: (N,) float logits of real images, in the discriminator's step.
            fake: (M,) float logits of generated images, in the same step.
            step: 0-dim int64 on the logits' device, the number of generator steps done.
            views: (N,) float logits of each of `views`, in the same order of images as `real`.

        Returns:
            0-dim float32.
        """


class NoRegularizer(Regularizer):
    """Adds nothing."""

    def forward(self, real: Tensor, fake: Tensor, step: Tensor, *views: Tensor) -> Tensor:
        """Return zero on the logits' device."""
        del fake, step, views
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

    def forward(self, real: Tensor, fake: Tensor, step: Tensor, *views: Tensor) -> Tensor:
        """Update the anchors where that is due, then return the weighted penalty."""
        del views
        real, fake = real.float(), fake.float()
        started = step >= self.start  # stays a tensor: a Python branch on it would wait for the device
        if self.training and torch.is_grad_enabled():
            self._update_anchors(real, fake, started)
        penalty = lecam_penalty(real, fake, self.real_anchor, self.fake_anchor)
        return self.weight * torch.where(started, penalty, 0.0)

    @torch.no_grad()
    def _update_anchors(self, real: Tensor, fake: Tensor, started: Tensor) -> None:
        step_size = torch.where(started, 1.0 - self.decay, 1.0)
        self.real_anchor.lerp_(all_reduce_mean(real.mean()), step_size)
        self.fake_anchor.lerp_(all_reduce_mean(fake.mean()), step_size)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"weight={self.weight}, decay={self.decay}, start={self.start}"


def consistency_penalty(real: Tensor, view: Tensor) -> Tensor:
    """Keep what is said of an image the same under augmentation: mean((D(x) - D(T(x)))^2) (Zhang et al. 2020, CR).

    Args:
        real: (N,) float32 logits of real images.
        view: (N,) float32 logits of the same images, augmented.

    Returns:
        0-dim float32, not yet weighted.
    """
    return (real - view).square().mean()


class Consistency(Regularizer):
    """Consistency regularisation (Zhang et al. 2020, "Consistency Regularization for GANs", section 2.3).

    `weight` times `consistency_penalty` between each real image and itself, mirrored at random and moved by a few
    pixels. The discriminator judges half as many images again.
    """

    def __init__(self, *, weight: float = 10.0, reach: int = 4) -> None:
        """Set up the term.

        Args:
            weight: Factor of the penalty, at least 0.
            reach: How many pixels an image is moved by at most, each way, at least 0.

        Raises:
            UserError: If a setting is out of its range.
        """
        super().__init__()
        if not 0.0 <= weight < math.inf:
            raise UserError(f"weight of consistency is {weight}: choose a number of at least 0, such as 10.")
        if reach < 0:
            raise UserError(f"reach of consistency is {reach}: choose a number of pixels of at least 0, such as 4.")
        self.weight = weight
        self.reach = reach

    def views(self, x: Tensor) -> list[Tensor]:
        """The images, each mirrored with probability 1/2 and moved."""
        mirrored = draw_shard(lambda n: torch.rand(n, 1, 1, 1, device=x.device), len(x)) < 0.5
        return [random_translation(torch.where(mirrored, x.flip(-1), x), self.reach)]

    def forward(self, real: Tensor, fake: Tensor, step: Tensor, *views: Tensor) -> Tensor:
        """Return the weighted penalty."""
        del fake, step
        return self.weight * consistency_penalty(real.float(), views[0].float())

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"weight={self.weight}, reach={self.reach}"


class LeCamConsistency(Regularizer):
    """LeCam and consistency regularisation together: the sum of the two terms."""

    def __init__(
        self,
        *,
        weight: float = 0.3,
        decay: float = 0.99,
        start: int = 1000,
        consistency_weight: float = 10.0,
        reach: int = 4,
    ) -> None:
        """Set up both terms.

        Args:
            weight: As in `LeCam`.
            decay: As in `LeCam`.
            start: As in `LeCam`.
            consistency_weight: `weight` of `Consistency`.
            reach: As in `Consistency`.

        Raises:
            UserError: If a setting is out of its range.
        """
        super().__init__()
        self.lecam = LeCam(weight=weight, decay=decay, start=start)
        self.consistency = Consistency(weight=consistency_weight, reach=reach)

    def views(self, x: Tensor) -> list[Tensor]:
        """Those of the consistency term."""
        return self.consistency.views(x)

    def forward(self, real: Tensor, fake: Tensor, step: Tensor, *views: Tensor) -> Tensor:
        """Return the sum."""
        total: Tensor = self.lecam(real, fake, step) + self.consistency(real, fake, step, *views)
        return total
