"""Adversarial losses: both networks' losses as functions of the discriminator's realness logits.

Every formula takes logits (N,) of any float dtype, computes in float32 and returns 0-dim float32 tensors to minimise.
The discriminator's losses are the mean over the real half plus the mean over the fake half, never their average:
published learning rates assume this scale.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from cifargan.errors import UserError
from cifargan.objectives.base import Loss, Penalty, require_interval, require_number
from cifargan.objectives.penalties import R1, R2, GradientPenalty

# Their gains set the scale of the features: a bound of 0.01 would make all features vanish.
NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def bce_real(real: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of real logits to the target `1 - label_smoothing`, averaged."""
    # To the target 1 - s it is softplus(x) - (1 - s) x, or, without subtracting, softplus(-x) + s x.
    real = real.float()
    return (F.softplus(-real) + label_smoothing * real).mean()


def bce_fake(fake: Tensor) -> Tensor:
    """Binary cross-entropy of fake logits to the target 0, averaged: -log(1 - sigmoid(fake))."""
    return F.softplus(fake.float()).mean()


def bce_generator(fake: Tensor) -> Tensor:
    """Non-saturating generator loss -log sigmoid(fake), averaged."""
    return F.softplus(-fake.float()).mean()


def hinge_real(real: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean of relu((1 - label_smoothing) - real)."""
    return F.relu((1.0 - label_smoothing) - real.float()).mean()


def hinge_fake(fake: Tensor) -> Tensor:
    """Mean of relu(1 + fake)."""
    return F.relu(1.0 + fake.float()).mean()


def negative_mean(logits: Tensor) -> Tensor:
    """-mean(logits): the generator's loss under hinge and Wasserstein, and a critic's loss for real images."""
    return -logits.float().mean()


def pair_loss(high: Tensor, low: Tensor) -> Tensor:
    """Mean of softplus(-(high - low)) over pairs; it is small where `high` (N,) exceeds `low` (N,)."""
    return F.softplus(low.float() - high.float()).mean()


def clippable_parameters(discriminator: nn.Module) -> list[nn.Parameter]:
    """All trained parameters, except those of norm layers and of modules marked by `spare_from_clipping`.

    The marked ones take only labels, or give only class logits, so they do not affect the slope of realness over images,
    which the bound is for. If they were bounded, a label map would be too small relative to the image: with c = 0.02 it
    stays below 0.04, where pixels reach 1.

    For a spectrally normalised weight this is the original weight: the normalised one is not a parameter.
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


class BCELoss(Loss):
    """Binary cross-entropy with the non-saturating generator (Goodfellow et al. 2014, section 3).

    D: mean(-t log sigmoid(real) - (1 - t) log(1 - sigmoid(real))) + mean(-log(1 - sigmoid(fake))) with
    t = 1 - label_smoothing.
    G: mean(-log sigmoid(fake)).
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        """Set up the loss.

        Args:
            label_smoothing: s in [0, 1): the target of real images falls from 1 to 1 - s, that of fakes stays at 0
                (one-sided, Salimans et al. 2016, section 3.4). Only the discriminator's loss uses it.

        Raises:
            UserError: `label_smoothing` is outside [0, 1).
        """
        self.label_smoothing = require_number("loss", "label_smoothing", label_smoothing, high=1.0)

    def discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy of both halves, the real one against the smoothed target."""
        return {"real": bce_real(real, self.label_smoothing), "fake": bce_fake(fake)}

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Cross-entropy of the fakes against the target 1, never smoothed."""
        del real
        return bce_generator(fake)


class HingeLoss(Loss):
    """Hinge loss (Lim and Ye 2017; Zhang et al. 2019, equation 4).

    D: mean(relu((1 - label_smoothing) - real)) + mean(relu(1 + fake)). G: -mean(fake).
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        """Set up the loss.

        Args:
            label_smoothing: s in [0, 1): the margin that real logits must reach falls from 1 to 1 - s, that of fakes
                stays at -1 (one-sided). Only the discriminator's loss uses it.

        Raises:
            UserError: `label_smoothing` is outside [0, 1).
        """
        self.label_smoothing = require_number("loss", "label_smoothing", label_smoothing, high=1.0)

    def discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Hinge of both halves, the real one with the smoothed margin."""
        return {"real": hinge_real(real, self.label_smoothing), "fake": hinge_fake(fake)}

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Negated mean of the fake logits."""
        del real
        return negative_mean(fake)


class _CriticLoss(Loss):
    """The Wasserstein estimate (Arjovsky et al. 2017). D: mean(fake) - mean(real). G: -mean(fake)."""

    def discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Mean of fake minus mean of real, as two halves."""
        return {"real": negative_mean(real), "fake": fake.float().mean()}

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Negated mean of the fake logits."""
        del real
        return negative_mean(fake)

    def health(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The estimated distance: a critic has no threshold, so no accuracy."""
        return {"distance/wasserstein": real.float().mean() - fake.float().mean()}


class WassersteinLoss(_CriticLoss):
    """Wasserstein loss with weight clipping (Arjovsky et al. 2017, algorithm 1).

    D: mean(fake) - mean(real). G: -mean(fake). The paper's setting is RMSprop at 5e-5 with five discriminator steps.
    """

    def __init__(self, *, clip: float = 0.01) -> None:
        """Set up the loss.

        Args:
            clip: c > 0: after each step of the discriminator its parameters are clamped to [-c, c], all but those of
                norm layers and of parts that do not affect the slope over images (`clippable_parameters`).

        Raises:
            UserError: `clip` is not a positive finite number.
        """
        if not 0.0 < clip < math.inf:
            raise UserError(f"loss.clip={clip}: choose a positive number, such as 0.01")
        self.clip = clip

    @torch.no_grad()
    def after_update(self, discriminator: nn.Module) -> None:
        """Clamp the discriminator's parameters to [-clip, clip] in place."""
        parameters: list[Tensor] = [*clippable_parameters(discriminator)]
        torch._foreach_clamp_max_(parameters, self.clip)
        torch._foreach_clamp_min_(parameters, -self.clip)


class WassersteinGPLoss(_CriticLoss):
    """Wasserstein loss with gradient penalty (Gulrajani et al. 2017, equation 3).

    D: mean(fake) - mean(real) + weight * mean((|grad D(mix)| - 1)^2). G: -mean(fake). The paper's setting is Adam at 1e-4
    with betas (0, 0.9), five discriminator steps, and a critic without batch norm.
    """

    def __init__(self, *, weight: float = 10.0, interval: int = 1) -> None:
        """Set up the loss.

        Args:
            weight: factor of the gradient penalty, at least 0.
            interval: k: the penalty is taken in every k-th iteration, times k.

        Raises:
            UserError: a setting is out of its range.
        """
        require_number("loss", "weight", weight)
        require_interval("loss", interval)
        self.penalty = GradientPenalty(weight=weight, interval=interval)

    def penalties(self) -> dict[str, Penalty]:
        """The gradient penalty."""
        return {"gradient_penalty": self.penalty}


class RelativisticLoss(Loss):
    """Relativistic pairs with R1 and R2 (Huang et al. 2024, R3GAN, equations 2 to 4; Jolicoeur-Martineau 2019).

    Each generated image is compared with a real one of the same class. D: mean(softplus(-(real - fake))) + gamma / 2 *
    (mean |grad D(real)|^2 + mean |grad D(fake)|^2). G: mean(softplus(-(fake - real))), with a fresh batch of real images.
    """

    pairs_with_real = True

    def __init__(self, *, gamma: float = 0.05, interval: int = 1) -> None:
        """Set up the loss.

        Args:
            gamma: strength of both penalties, at least 0; 0 leaves them out.
            interval: k: the penalties are taken in every k-th iteration, times k.

        Raises:
            UserError: a setting is out of its range.
        """
        require_number("loss", "gamma", gamma)
        require_interval("loss", interval)
        self.r1 = R1(gamma=gamma, interval=interval)
        self.r2 = R2(gamma=gamma, interval=interval)

    def discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The real image should have the higher logit of each pair."""
        return {"pairs": pair_loss(real, fake)}

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """The generated image should have the higher logit of each pair."""
        if real is None:
            raise ValueError("a relativistic loss needs the logits of real images")
        return pair_loss(fake, real)

    def penalties(self) -> dict[str, Penalty]:
        """R1 and R2, or neither."""
        return {"r1": self.r1, "r2": self.r2} if self.r1.gamma else {}

    def health(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The share of pairs in which the real image has the higher logit; single logits have no meaning here."""
        return {"accuracy/pairs": (real > fake).float().mean()}
