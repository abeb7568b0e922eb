"""Adversarial losses: what the discriminator's realness logits cost each player.

Every loss takes logits (N,) of any float dtype, computes in float32 and returns a 0-dim float32 tensor to be minimised.
The discriminator's losses are the mean over the real half plus the mean over the fake half, never their average: that
is the scale the published learning rates belong to.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from cifargan.errors import UserError

# Their gains set the scale of the features: a bound of 0.01 would switch the network off, not bound its slope.
NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def bce_discriminator(real: Tensor, fake: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy on logits with targets `1 - label_smoothing` (real) and 0 (fake), halves summed."""
    # The cross-entropy to the target 1 - s is softplus(x) - (1 - s) x, or, without subtracting, softplus(-x) + s x.
    real, fake = real.float(), fake.float()
    return (F.softplus(-real) + label_smoothing * real).mean() + F.softplus(fake).mean()


def bce_generator(fake: Tensor) -> Tensor:
    """Non-saturating generator loss -log sigmoid(fake), averaged."""
    return F.softplus(-fake.float()).mean()


def hinge_discriminator(real: Tensor, fake: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean of relu((1 - label_smoothing) - real) plus mean of relu(1 + fake)."""
    return F.relu((1.0 - label_smoothing) - real.float()).mean() + F.relu(1.0 + fake.float()).mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The negated estimate of the Wasserstein distance: mean(fake) - mean(real)."""
    return fake.float().mean() - real.float().mean()


def negative_mean(fake: Tensor) -> Tensor:
    """The generator's loss beside hinge and Wasserstein: -mean(fake)."""
    return -fake.float().mean()


def clippable_parameters(discriminator: nn.Module) -> list[nn.Parameter]:
    """All that train, but the gains and biases of norm layers, and those of modules that say `spared_by_clipping`.

    These last have no share in the slope of realness over images, which is what the bound is for: they see labels
    alone, or make class logits alone. Bounded all the same, a label map beside the image would be too faint to be seen:
    with c = 0.02 it stays below 0.04, where pixels reach 1.

    Of a spectrally normalised weight this is the original one, since the normalised one is no parameter.
    """
    apart = [module for module in discriminator.modules() if getattr(module, "spared_by_clipping", False)]
    spared = {id(parameter) for module in apart for parameter in module.parameters()}
    return [
        parameter
        for module in discriminator.modules()
        if not isinstance(module, NORM_LAYERS)
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad and id(parameter) not in spared
    ]


class AdversarialLoss(ABC):
    """The two sides of the gan, and the constraint that one of them may be under."""

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Loss of the discriminator.

        Args:
            real: (N,) float logits of real images.
            fake: (M,) float logits of generated images.

        Returns:
            0-dim float32.
        """

    @abstractmethod
    def generator(self, fake: Tensor) -> Tensor:
        """Loss of the generator.

        Args:
            fake: (N,) float logits of generated images.

        Returns:
            0-dim float32.
        """

    def constrain(self, discriminator: nn.Module) -> None:
        """Put the discriminator back where the loss is valid, after each of its steps. Most losses need nothing."""
        del discriminator


class BCELoss(AdversarialLoss):
    """Binary cross-entropy with the non-saturating generator (Goodfellow et al. 2014, section 3).

    D: mean(-t log sigmoid(real) - (1 - t) log(1 - sigmoid(real))) + mean(-log(1 - sigmoid(fake))) with
    t = 1 - label_smoothing.
    G: mean(-log sigmoid(fake)).
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        """Set up the loss.

        Args:
            label_smoothing: s in [0, 1): the target of real images falls from 1 to 1 - s, that of fakes stays at 0
                (one-sided, Salimans et al. 2016, section 3.4). Only the discriminator's loss sees it.

        Raises:
            UserError: If `label_smoothing` is outside [0, 1).
        """
        self.label_smoothing = _checked_smoothing(label_smoothing, owner="BCELoss")

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Binary cross-entropy of both halves, the real one against the smoothed target."""
        return bce_discriminator(real, fake, self.label_smoothing)

    def generator(self, fake: Tensor) -> Tensor:
        """Cross-entropy of the fakes against the target 1, never smoothed."""
        return bce_generator(fake)


class HingeLoss(AdversarialLoss):
    """Hinge loss (Lim and Ye 2017; Zhang et al. 2019, equation 4).

    D: mean(relu((1 - label_smoothing) - real)) + mean(relu(1 + fake)). G: -mean(fake).
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        """Set up the loss.

        Args:
            label_smoothing: s in [0, 1): the margin that real logits must reach falls from 1 to 1 - s, that of fakes
                stays at -1 (one-sided). Only the discriminator's loss sees it.

        Raises:
            UserError: If `label_smoothing` is outside [0, 1).
        """
        self.label_smoothing = _checked_smoothing(label_smoothing, owner="HingeLoss")

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Hinge of both halves, the real one with the smoothed margin."""
        return hinge_discriminator(real, fake, self.label_smoothing)

    def generator(self, fake: Tensor) -> Tensor:
        """Negated mean of the fake logits."""
        return negative_mean(fake)


class WassersteinLoss(AdversarialLoss):
    """Wasserstein loss with weight clipping (Arjovsky et al. 2017, algorithm 1).

    D: mean(fake) - mean(real). G: -mean(fake). The paper's setting is RMSprop at 5e-5 with five discriminator steps.
    """

    def __init__(self, *, clip: float = 0.01) -> None:
        """Set up the loss.

        Args:
            clip: c > 0: after each step of the discriminator its parameters are clamped to [-c, c], all but those of
                norm layers and of what has no share in the slope over images (`clippable_parameters`).

        Raises:
            UserError: If `clip` is not a positive finite number.
        """
        if not 0.0 < clip < math.inf:
            raise UserError(f"clip of WassersteinLoss is {clip}: choose a positive number, such as 0.01.")
        self.clip = clip

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Mean of fake minus mean of real."""
        return wasserstein_discriminator(real, fake)

    def generator(self, fake: Tensor) -> Tensor:
        """Negated mean of the fake logits."""
        return negative_mean(fake)

    @torch.no_grad()
    def constrain(self, discriminator: nn.Module) -> None:
        """Clamp the discriminator's parameters to [-clip, clip] in place."""
        parameters: list[Tensor] = [*clippable_parameters(discriminator)]
        torch._foreach_clamp_max_(parameters, self.clip)
        torch._foreach_clamp_min_(parameters, -self.clip)


def _checked_smoothing(label_smoothing: float, *, owner: str) -> float:
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"label_smoothing of {owner} is {label_smoothing}: choose a number in [0, 1), such as 0.1.")
    return label_smoothing
