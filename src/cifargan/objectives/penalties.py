"""Penalties: terms of the discriminator's loss beside the adversarial one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cifargan.distributed import all_reduce_mean, draw_shard
from cifargan.objectives.augment import random_translation
from cifargan.objectives.base import Batch, Judgement, Kind, Penalty, View, require_interval, require_number


def lecam_penalty(real: Tensor, fake: Tensor, real_anchor: Tensor, fake_anchor: Tensor) -> Tensor:
    """Keep each kind of logit near the running mean of the other kind (Tseng et al. 2021).

    mean(relu(real - fake_anchor)^2) + mean(relu(real_anchor - fake)^2). The anchors are crossed: each kind of logit is pulled
    towards the running mean of the other, which bounds how far apart the discriminator drives the two. The paper writes plain
    squares; its authors' code has the relu, which ignores logits that are already beyond the other kind's anchor.

    Args:
        real: (N,) float32 logits of real images.
        fake: (M,) float32 logits of generated images.
        real_anchor: 0-dim float32, running mean of the real logits.
        fake_anchor: 0-dim float32, running mean of the fake logits.

    Returns:
        0-dim float32, not yet weighted.
    """
    return F.relu(real - fake_anchor).square().mean() + F.relu(real_anchor - fake).square().mean()


class LeCam(Penalty):
    """LeCam regularisation (Tseng et al. 2021): `weight` times `lecam_penalty`.

    Before `start` the anchors follow the latest batch and the penalty is 0. From then on they are running means: a call
    with gradients enabled first adds its batch, then computes the penalty.

    Attributes:
        real_anchor: 0-dim float32 buffer, running mean of the real logits.
        fake_anchor: 0-dim float32 buffer, running mean of the fake logits.
    """

    real_anchor: Tensor
    fake_anchor: Tensor

    def __init__(self, *, weight: float = 0.3, decay: float = 0.99, start: int = 1000) -> None:
        """Set up the term.

        Args:
            weight: factor of the penalty, at least 0.
            decay: factor of the old running mean at each discriminator step, in [0, 1).
            start: generator steps before the penalty begins, at least 0.

        Raises:
            UserError: a setting is out of its range.
        """
        super().__init__()
        self.weight = require_number("regularizer.lecam", "weight", weight)
        self.decay = require_number("regularizer.lecam", "decay", decay, high=1.0)
        self.start = int(require_number("regularizer.lecam", "start", start))
        self.register_buffer("real_anchor", torch.zeros(()))
        self.register_buffer("fake_anchor", torch.zeros(()))

    def forward(self, judgement: Judgement) -> Tensor:
        """Update the anchors in training, then return the weighted penalty."""
        real, fake = judgement.real.logits.float(), judgement.fake.logits.float()
        started = judgement.step >= self.start  # stays a tensor: a Python branch on it would wait for the device
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
    """Penalise a change of the logit under augmentation: mean((D(x) - D(T(x)))^2) (Zhang et al. 2020, CR).

    Args:
        real: (N,) float32 logits of real images.
        view: (N,) float32 logits of the same images, augmented.

    Returns:
        0-dim float32, not yet weighted.
    """
    return (real - view).square().mean()


class Consistency(Penalty):
    """Consistency regularisation (Zhang et al. 2020, "Consistency Regularization for GANs", section 2.3).

    `weight` times `consistency_penalty` between each real image and itself, mirrored at random and moved by a few
    pixels. The discriminator judges 1.5 times as many images.
    """

    def __init__(self, *, weight: float = 10.0, reach: int = 4) -> None:
        """Set up the term.

        Args:
            weight: factor of the penalty, at least 0.
            reach: how many pixels an image is moved by at most, each way, at least 0.

        Raises:
            UserError: a setting is out of its range.
        """
        super().__init__()
        self.weight = require_number("regularizer.cr", "weight", weight)
        self.reach = int(require_number("regularizer.cr", "reach", reach))

    def views(self) -> Sequence[View]:
        """One: the images, each mirrored with probability 1/2 and moved."""
        return (self._view,)

    def _view(self, x: Tensor) -> Tensor:
        mirrored = draw_shard(lambda n: torch.rand(n, 1, 1, 1, device=x.device), len(x)) < 0.5
        return random_translation(torch.where(mirrored, x.flip(-1), x), self.reach)

    def forward(self, judgement: Judgement) -> Tensor:
        """Return the weighted penalty."""
        (view,) = judgement.views
        return self.weight * consistency_penalty(judgement.real.logits.float(), view.logits.float())

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"weight={self.weight}, reach={self.reach}"


def squared_gradient(gradient: Tensor) -> Tensor:
    """The mean over images of the squared norm of each one's gradient.

    Args:
        gradient: (N, 3, H, W), at least float32.

    Returns:
        0-dim, not yet weighted.
    """
    return gradient.square().sum(dim=(1, 2, 3)).mean()


class _ZeroCentredPenalty(Penalty):
    """gamma / 2 times the mean squared norm of D's gradient at images of one kind (Mescheder et al. 2018, equation 9)."""

    differentiates_twice = True

    def __init__(self, *, gamma: float, interval: int) -> None:
        super().__init__()
        self.gamma = require_number(f"regularizer.{type(self).__name__.lower()}", "gamma", gamma)
        self.interval = require_interval(f"regularizer.{type(self).__name__.lower()}", interval)

    def forward(self, judgement: Judgement) -> Tensor:
        """Return the weighted penalty."""
        (kind,) = self.gradients_at
        return self.gamma / 2 * squared_gradient(judgement.gradient_at[kind])

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"gamma={self.gamma}, interval={self.interval}"


class R1(_ZeroCentredPenalty):
    """R1: the zero-centred gradient penalty at real images (Mescheder et al. 2018, equation 9)."""

    gradients_at: tuple[Kind, ...] = ("real",)  # type: ignore[misc]

    def __init__(self, *, gamma: float = 0.01, interval: int = 1) -> None:
        """Set up the term.

        Args:
            gamma: the penalty's weight is gamma / 2; at least 0.
            interval: k: the penalty is taken in every k-th iteration, times k (lazy regularisation, Karras et al. 2020).

        Raises:
            UserError: a setting is out of its range.
        """
        super().__init__(gamma=gamma, interval=interval)


class R2(_ZeroCentredPenalty):
    """R2: the zero-centred gradient penalty at generated images (Mescheder et al. 2018, equation 10)."""

    gradients_at: tuple[Kind, ...] = ("fake",)  # type: ignore[misc]

    def __init__(self, *, gamma: float = 0.01, interval: int = 1) -> None:
        """Set up the term, as in `R1`."""
        super().__init__(gamma=gamma, interval=interval)


class GradientPenalty(Penalty):
    """weight * mean((|grad D(mix)| - 1)^2) (Gulrajani et al. 2017, equation 3).

    Each mixed image is a real + (1 - a) fake with a ~ U(0, 1), judged under the real image's label.
    """

    differentiates_twice = True

    def __init__(self, *, weight: float = 10.0, interval: int = 1) -> None:
        """Set up the term.

        Args:
            weight: factor of the penalty, at least 0.
            interval: k: the penalty is taken in every k-th iteration, times k.

        Raises:
            UserError: a setting is out of its range.
        """
        super().__init__()
        self.weight = require_number(f"regularizer.{type(self).__name__.lower()}", "weight", weight)
        self.interval = require_interval(f"regularizer.{type(self).__name__.lower()}", interval)

    def forward(self, judgement: Judgement) -> Tensor:
        """Mix, judge once more, and return the weighted penalty."""
        (real, y), (fake, _) = judgement.real_batch, judgement.fake_batch
        share = draw_shard(lambda n: torch.rand(n, 1, 1, 1, device=real.device), len(real)).to(real.dtype)
        mix = torch.lerp(fake.detach(), real.detach(), share).requires_grad_()
        (output,) = judgement.critic(Batch(mix, y))
        (gradient,) = judgement.critic.gradients([output.logits], [mix])
        norm = torch.linalg.vector_norm(gradient, dim=(1, 2, 3))  # (N,)
        penalty: Tensor = (norm - 1.0).square().mean()
        return self.weight * penalty

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"weight={self.weight}, interval={self.interval}"
