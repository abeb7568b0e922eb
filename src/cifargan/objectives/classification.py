"""Class terms: what a discriminator's opinion about the class costs both players.

The discriminator learns classes from real images, the generator is corrected on its own (Odena et al. 2017): each loss
has a side for each player. All is computed in float32 and returned as a 0-dim float32 tensor, already weighted.
"""

import math
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError


class HasClassOpinion(Protocol):
    """The part of a discriminator's output that class terms read; None stands for what its head does not give."""

    @property
    def logits(self) -> Tensor:
        """(N,) realness."""
        ...

    @property
    def class_logits(self) -> Tensor | None:
        """(N, K) class scores before the softmax."""
        ...

    @property
    def embedding(self) -> Tensor | None:
        """(N, E) images on the unit sphere."""
        ...

    @property
    def class_proxies(self) -> Tensor | None:
        """(K, E) classes on the same sphere."""
        ...


def d2d_cross_entropy(
    embedding: Tensor, class_proxies: Tensor, y: Tensor, *, margin: float, temperature: float
) -> Tensor:
    """Data-to-data cross-entropy (D2D-CE) of ReACGAN (Kang et al. 2021).

    With unit embeddings f and unit proxies v, the mean over i of

        -log(p_i / (p_i + sum over j with y_j != y_i of exp(max(f_i . f_j - m_n, 0) / t))),
        p_i = exp(min(f_i . v_{y_i} - m_p, 0) / t),  m_p = margin,  m_n = 1 - margin,  t = temperature.

    The clamps silence what is already good: a sample closer to its proxy than m_p, and a pair of different classes less
    alike than m_n. The negatives are the other samples of the batch; without any the loss is 0.

    Args:
        embedding: (N, E) float, rows of unit length.
        class_proxies: (K, E) float, rows of unit length.
        y: (N,) int64 labels in [0, K).
        margin: m_p, a cosine.
        temperature: t > 0.

    Returns:
        0-dim float32.
    """
    with torch.autocast(embedding.device.type, enabled=False):  # cosines rounded to bfloat16 would blur the margins
        embedding, class_proxies = embedding.float(), class_proxies.float()
        to_proxy = (embedding @ class_proxies.T).gather(1, y[:, None])  # (N, K) -> (N, 1)
        to_others = embedding @ embedding.T  # (N, N)
    attraction = (to_proxy - margin).clamp(max=0.0) / temperature
    repulsion = (to_others - (1.0 - margin)).clamp(min=0.0) / temperature
    same_class = y[:, None] == y[None, :]  # holds the diagonal too
    repulsion = repulsion.masked_fill(same_class, -math.inf)
    return (torch.cat([attraction, repulsion], dim=1).logsumexp(dim=1) - attraction[:, 0]).mean()


class ClassificationLoss(nn.Module, ABC):
    """The class term of both players: one formula, `forward`, and a weight for each side."""

    def __init__(self, *, weight: float, fake_weight: float) -> None:
        """Set up the weights.

        Args:
            weight: Factor of the term on real images in the discriminator's loss, at least 0.
            fake_weight: Factor of the term on generated images in the generator's loss, at least 0.

        Raises:
            UserError: If a weight is negative or not finite.
        """
        super().__init__()
        for name, value in (("weight", weight), ("fake_weight", fake_weight)):
            if not 0.0 <= value < math.inf:
                raise UserError(f"{name} of {type(self).__name__} is {value}: choose a number of at least 0.")
        self.weight = weight
        self.fake_weight = fake_weight

    @abstractmethod
    def forward(self, output: HasClassOpinion, y: Tensor) -> Tensor:
        """Compute the term without a weight.

        Args:
            output: What the discriminator says of N images.
            y: (N,) int64, their labels or those they were generated from.

        Returns:
            0-dim float32.

        Raises:
            UserError: If the discriminator's head does not give what the term needs.
        """

    def discriminator(self, output: HasClassOpinion, y: Tensor) -> Tensor:
        """Weighted term of the discriminator, from real images; see `forward`."""
        return self.weight * self.forward(output, y)

    def generator(self, output: HasClassOpinion, y: Tensor) -> Tensor:
        """Weighted term of the generator, from generated images; see `forward`."""
        return self.fake_weight * self.forward(output, y)


class NoClassification(ClassificationLoss):
    """Adds nothing, whatever the head."""

    def __init__(self) -> None:
        super().__init__(weight=0.0, fake_weight=0.0)

    def forward(self, output: HasClassOpinion, y: Tensor) -> Tensor:
        """Return zero on the logits' device."""
        del y
        return output.logits.new_zeros((), dtype=torch.float32)


class CrossEntropy(ClassificationLoss):
    """Cross-entropy of an auxiliary classifier, AC-GAN (Odena et al. 2017, equation 3)."""

    def __init__(self, *, weight: float = 1.0, fake_weight: float = 1.0, label_smoothing: float = 0.1) -> None:
        """Set up the term.

        Args:
            weight: Factor of the term on real images in the discriminator's loss, at least 0.
            fake_weight: Factor of the term on generated images in the generator's loss, at least 0.
            label_smoothing: Share in [0, 1) of each target that is spread evenly over all classes, for both players.

        Raises:
            UserError: If a setting is out of its range.
        """
        super().__init__(weight=weight, fake_weight=fake_weight)
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"label_smoothing of CrossEntropy is {label_smoothing}: choose a number in [0, 1).")
        self.label_smoothing = label_smoothing

    def forward(self, output: HasClassOpinion, y: Tensor) -> Tensor:
        """Cross-entropy of the class logits (N, K)."""
        if output.class_logits is None:
            raise UserError(
                "CrossEntropy needs class logits, which the discriminator's head does not give: "
                "choose model.discriminator.head.name=auxiliary."
            )
        return F.cross_entropy(output.class_logits.float(), y, label_smoothing=self.label_smoothing)


class D2DCE(ClassificationLoss):
    """Data-to-data cross-entropy, ReACGAN (Kang et al. 2021): see `d2d_cross_entropy`."""

    def __init__(
        self, *, weight: float = 0.5, fake_weight: float = 0.5, margin: float = 0.98, temperature: float = 0.5
    ) -> None:
        """Set up the term.

        Args:
            weight: Factor of the term on real images in the discriminator's loss, at least 0.
            fake_weight: Factor of the term on generated images in the generator's loss, at least 0.
            margin: Cosine in [0, 1] to the own class's proxy from which a sample counts as good enough; two samples of
                different classes do from `1 - margin` down.
            temperature: Divides the cosines, above 0; small values make the loss look at the hardest negatives.

        Raises:
            UserError: If a setting is out of its range.
        """
        super().__init__(weight=weight, fake_weight=fake_weight)
        if not 0.0 <= margin <= 1.0:
            raise UserError(f"margin of D2DCE is {margin}: choose a cosine in [0, 1], such as 0.98.")
        if not 0.0 < temperature < math.inf:
            raise UserError(f"temperature of D2DCE is {temperature}: choose a positive number, such as 0.5.")
        self.margin = margin
        self.temperature = temperature

    def forward(self, output: HasClassOpinion, y: Tensor) -> Tensor:
        """Data-to-data cross-entropy of the embedding (N, E) and the class proxies (K, E)."""
        if output.embedding is None or output.class_proxies is None:
            raise UserError(
                "D2DCE needs an embedding and class proxies, which the discriminator's head does not give: "
                "choose model.discriminator.head.name=embedding."
            )
        return d2d_cross_entropy(
            output.embedding, output.class_proxies, y, margin=self.margin, temperature=self.temperature
        )
