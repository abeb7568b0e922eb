"""Class terms of both networks' losses, from the class logits or embeddings of a discriminator's head.

The discriminator learns classes from real images, the generator is trained by its own images (Odena et al. 2017): each loss
has a term for each network. All is computed in float32 and returned as a 0-dim float32 tensor, already weighted.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.models.interface import DiscriminatorOutput
from cifargan.objectives.base import require_number


def d2d_cross_entropy(
    embedding: Tensor, class_proxies: Tensor, y: Tensor, *, margin: float, temperature: float
) -> Tensor:
    """Data-to-data cross-entropy (D2D-CE) of ReACGAN (Kang et al. 2021).

    With unit embeddings f and unit proxies v, the mean over i of

        -log(p_i / (p_i + sum over j with y_j != y_i of exp(max(f_i . f_j - m_n, 0) / t))),
        p_i = exp(min(f_i . v_{y_i} - m_p, 0) / t),  m_p = margin,  m_n = 1 - margin,  t = temperature.

    The clamps remove the gradient of samples that are good enough: a sample closer to its proxy than m_p, and a pair of different classes less
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
    with torch.autocast(embedding.device.type, enabled=False):  # bfloat16 is too coarse for the margins
        embedding, class_proxies = embedding.float(), class_proxies.float()
        to_proxy = (embedding @ class_proxies.T).gather(1, y[:, None])  # (N, K) -> (N, 1)
        to_others = embedding @ embedding.T  # (N, N)
    attraction = (to_proxy - margin).clamp(max=0.0) / temperature
    repulsion = (to_others - (1.0 - margin)).clamp(min=0.0) / temperature
    same_class = y[:, None] == y[None, :]  # holds the diagonal too
    repulsion = repulsion.masked_fill(same_class, -math.inf)
    return (torch.cat([attraction, repulsion], dim=1).logsumexp(dim=1) - attraction[:, 0]).mean()


class ClassificationLoss(nn.Module, ABC):
    """The class term of both networks: one formula, `forward`, and a weight for each network.

    Attributes:
        needs: the fields of `DiscriminatorOutput`, beside `logits`, that the term reads; the head must give them.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, weight: float, fake_weight: float) -> None:
        """Set up the weights.

        Args:
            weight: Factor of the term on real images in the discriminator's loss, at least 0.
            fake_weight: Factor of the term on generated images in the generator's loss, at least 0.

        Raises:
            UserError: If a weight is negative or not finite.
        """
        super().__init__()
        self.weight = require_number("model.classification", "weight", weight)
        self.fake_weight = require_number("model.classification", "fake_weight", fake_weight)

    @abstractmethod
    def forward(self, output: DiscriminatorOutput, y: Tensor) -> Tensor:
        """Compute the term without a weight.

        Args:
            output: The discriminator's output for N images.
            y: (N,) int64, their labels or those they were generated from.

        Returns:
            0-dim float32.
        """

    def discriminator(self, output: DiscriminatorOutput, y: Tensor) -> Tensor:
        """Weighted term of the discriminator, from real images; see `forward`."""
        return self.weight * self.forward(output, y)

    def generator(self, output: DiscriminatorOutput, y: Tensor) -> Tensor:
        """Weighted term of the generator, from generated images; see `forward`."""
        return self.fake_weight * self.forward(output, y)


class NoClassification(ClassificationLoss):
    """No class term."""

    def __init__(self) -> None:
        super().__init__(weight=0.0, fake_weight=0.0)

    def forward(self, output: DiscriminatorOutput, y: Tensor) -> Tensor:
        """Return zero on the logits' device."""
        del y
        return output.logits.new_zeros((), dtype=torch.float32)


class CrossEntropy(ClassificationLoss):
    """Cross-entropy of an auxiliary classifier, AC-GAN (Odena et al. 2017, equation 3)."""

    needs = ("class_logits",)

    def __init__(self, *, weight: float = 1.0, fake_weight: float = 1.0, label_smoothing: float = 0.1) -> None:
        """Set up the term.

        Args:
            weight: Factor of the term on real images in the discriminator's loss, at least 0.
            fake_weight: Factor of the term on generated images in the generator's loss, at least 0.
            label_smoothing: Share in [0, 1) of each target that is spread evenly over all classes, for both networks.

        Raises:
            UserError: If a setting is out of its range.
        """
        super().__init__(weight=weight, fake_weight=fake_weight)
        self.label_smoothing = require_number("model.classification", "label_smoothing", label_smoothing, high=1.0)

    def forward(self, output: DiscriminatorOutput, y: Tensor) -> Tensor:
        """Cross-entropy of the class logits (N, K)."""
        if output.class_logits is None:
            raise ValueError("the head gives no class logits")
        return F.cross_entropy(output.class_logits.float(), y, label_smoothing=self.label_smoothing)


class D2DCE(ClassificationLoss):
    """Data-to-data cross-entropy, ReACGAN (Kang et al. 2021): see `d2d_cross_entropy`."""

    needs = ("embedding", "class_proxies")

    def __init__(
        self, *, weight: float = 0.5, fake_weight: float = 0.5, margin: float = 0.98, temperature: float = 0.5
    ) -> None:
        """Set up the term.

        Args:
            weight: Factor of the term on real images in the discriminator's loss, at least 0.
            fake_weight: Factor of the term on generated images in the generator's loss, at least 0.
            margin: Cosine in [0, 1] to the own class's proxy from which a sample counts as good enough; two samples of
                different classes do from `1 - margin` down.
            temperature: Divides the cosines, above 0; small values give the hardest negatives more weight.

        Raises:
            UserError: If a setting is out of its range.
        """
        super().__init__(weight=weight, fake_weight=fake_weight)
        if not 0.0 <= margin <= 1.0:
            raise UserError(f"model.classification.margin={margin}: choose a cosine in [0, 1], such as 0.98")
        if not 0.0 < temperature < math.inf:
            raise UserError(f"model.classification.temperature={temperature}: choose a positive number, such as 0.5")
        self.margin = margin
        self.temperature = temperature

    def forward(self, output: DiscriminatorOutput, y: Tensor) -> Tensor:
        """Data-to-data cross-entropy of the embedding (N, E) and the class proxies (K, E)."""
        if output.embedding is None or output.class_proxies is None:
            raise ValueError("the head gives no embedding and no class proxies")
        return d2d_cross_entropy(
            output.embedding, output.class_proxies, y, margin=self.margin, temperature=self.temperature
        )
