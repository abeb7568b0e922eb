"""The interface between the training step and the objective: batches, the critic, losses, penalties.

Shapes: N batch, K classes. Images are (N, 3, H, W) float in [-1, 1]; labels are (N,) int64. Every term is a 0-dim
float32 tensor on the device, already weighted; the sum of an update's terms is minimised in one backward pass.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.models.interface import Discriminator, DiscriminatorOutput

View: TypeAlias = Callable[[Tensor], Tensor]  # images (N, 3, H, W) to other images of the same shape
Kind: TypeAlias = Literal["real", "fake"]


class Batch(NamedTuple):
    """Images before augmentation, with their labels."""

    x: Tensor  # (N, 3, H, W) float
    y: Tensor  # (N,) int64


class Augment(nn.Module):
    """The augmentation of all images that the discriminator sees; this one changes nothing. Subclasses draw for each image."""

    def forward(self, x: Tensor) -> Tensor:
        """Augment images (N, 3, H, W); shape and dtype stay, gradients flow through."""
        return x

    def observe(self, real_logits: Tensor) -> None:
        """Take the logits (N,) of augmented real images, once a micro-batch of D's step. Adaptive kinds use it."""
        del real_logits

    def after_update(self) -> None:
        """Adapt to what was observed, after each update of the discriminator."""


class Critic:
    """The discriminator as an objective sees it: it augments, casts, and joins passes.

    Args:
        discriminator: judges images.
        augment: applied once to each batch, in the order in which the batches are given.
        autocast: the context for forward passes.
        scale: multiplies a loss by fp16's scale, so that gradients of it do not underflow.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        augment: Augment,
        *,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:
        self.discriminator = discriminator
        self.augment = augment
        self._autocast = autocast
        self._scale = scale

    def __call__(self, *batches: Batch, views: Sequence[View] = ()) -> list[DiscriminatorOutput]:
        """Augment and judge batches, in one pass where the discriminator allows it.

        Args:
            batches: images before augmentation.
            views: further views of the first batch, made from its augmented images and not augmented again.

        Returns:
            One output for each batch, then one for each view.
        """
        first, *others = batches
        x = self.augment(first.x)
        images = [x, *(view(x) for view in views), *(self.augment(batch.x) for batch in others)]
        labels = [first.y, *(first.y for _ in views), *(batch.y for batch in others)]
        with self._autocast():
            seen, *rest = self._judge(images, labels)
        return [seen, *rest[len(views) :], *rest[: len(views)]]

    def _judge(self, x: list[Tensor], y: list[Tensor]) -> list[DiscriminatorOutput]:
        if len(x) > 1 and self.discriminator.joint_pass:
            joint: DiscriminatorOutput = self.discriminator(torch.cat(x), torch.cat(y))
            return joint.split([len(part) for part in x])
        return [self.discriminator(*pair) for pair in zip(x, y, strict=True)]

    def gradients(self, logits: Sequence[Tensor], images: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of each image's logit with respect to that image; it can be differentiated again.

        Args:
            logits: (N,) for each batch of images.
            images: (N, 3, H, W), which required gradients when they were judged.

        Returns:
            (N, 3, H, W) for each batch, in the images' dtype, at least float32.
        """
        total = torch.stack([part.float().sum() for part in logits]).sum()
        found = torch.autograd.grad(self._scale(total), images, create_graph=True)
        one = self._scale(torch.ones_like(total))
        return [gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / one for gradient in found]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One micro-batch in the discriminator's step, as penalties see it.

    Attributes:
        critic: for further passes.
        real_batch: real images before augmentation.
        fake_batch: generated images before augmentation.
        real: the output for the real images.
        fake: the output for the generated images.
        views: the output for each of the penalty's own `views`.
        gradient_at: (N, 3, H, W) gradients of the logits at the images, of the kinds that the penalty asks for.
        step: 0-dim int64 on the device, the number of generator updates done.
    """

    critic: Critic
    real_batch: Batch
    fake_batch: Batch
    real: DiscriminatorOutput
    fake: DiscriminatorOutput
    step: Tensor
    views: Sequence[DiscriminatorOutput] = ()
    gradient_at: Mapping[Kind, Tensor] = field(default_factory=dict)


class Penalty(nn.Module, ABC):
    """A term of the discriminator's loss beside the adversarial one; its state lives in buffers, so it is saved.

    Attributes:
        interval: k: the penalty is taken in every k-th iteration, in each of its discriminator updates, times k.
        gradients_at: the kinds of images at which `judgement.gradient_at` is needed.
        differentiates_twice: whether the term contains a gradient; such a term allows neither batch norm nor compilation.
        needs: the fields of `DiscriminatorOutput`, beside `logits`, that it reads; the head must give them.
    """

    interval: int = 1
    gradients_at: ClassVar[tuple[Kind, ...]] = ()
    differentiates_twice: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def views(self) -> Sequence[View]:
        """Views of the augmented real images that the discriminator judges as well, in the same pass."""
        return ()

    @abstractmethod
    def forward(self, judgement: Judgement) -> Tensor:
        """Compute the weighted term, 0-dim float32."""


class Loss(ABC):
    """An adversarial loss: both networks' losses as functions of the discriminator's realness logits.

    Attributes:
        pairs_with_real: whether it compares pairs of one class: generated images then have the real images' labels,
            and the generator's step takes a batch of real images too.
    """

    pairs_with_real: ClassVar[bool] = False

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Loss of the discriminator, term by term.

        Args:
            real: (N,) float logits of real images.
            fake: (N,) float logits of generated images.

        Returns:
            0-dim float32 tensors, logged as `loss/NAME`; their sum is `loss/discriminator`.
        """

    @abstractmethod
    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Loss of the generator.

        Args:
            fake: (N,) float logits of generated images.
            real: (N,) float logits of real images of the same labels; only if `pairs_with_real`.

        Returns:
            0-dim float32.
        """

    def penalties(self) -> dict[str, Penalty]:
        """The penalties that the loss requires, each logged as `loss/NAME`."""
        return {}

    def after_update(self, discriminator: nn.Module) -> None:
        """Restore the constraints of the loss after each update of the discriminator. Most losses have none."""
        del discriminator

    def health(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The figures to log and to show, from D's logits (N,): by default D's accuracy for each kind.

        Figures named `accuracy/...` are shares in [0, 1]; the collapse watch reads those.
        """
        return {"accuracy/real": (real > 0).float().mean(), "accuracy/fake": (fake < 0).float().mean()}

    def discriminator_has_won(self, health: Mapping[str, float]) -> bool:
        """Whether D classifies (nearly) every image correctly, by the logged means of `health`; never without accuracies."""
        return min((share for name, share in health.items() if name.startswith("accuracy/")), default=0.0) > 0.999


def require_number(owner: str, name: str, value: float, *, low: float = 0.0, high: float = math.inf) -> float:
    """Check that a setting lies in [low, high) and return it.

    Raises:
        UserError: it does not.
    """
    if not low <= value < high:
        wanted = f"in [{low:g}, {high:g})" if high < math.inf else f"of at least {low:g}"
        raise UserError(f"{owner}.{name}={value}: choose a number {wanted}")
    return value


def require_interval(owner: str, interval: int) -> int:
    """Check an interval in iterations and return it.

    Raises:
        UserError: it is below 1.
    """
    if interval < 1:
        raise UserError(f"{owner}.interval={interval}: choose a number of iterations of at least 1")
    return interval
