"""Heads of discriminators: the last layer, which maps features to realness logits and, in some heads, class logits.

Shapes: N batch, F features, K classes, E length of an embedding. Every head computes in float32 even under autocast:
the cost is small, and losses depend on small differences between logits.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.models import spectral
from cifargan.models.interface import DiscriminatorOutput, Head, spare_from_clipping


class _FullPrecisionHead(Head):
    """Widens half-precision features to float32 and turns autocast off."""

    def forward(self, h: Tensor, y: Tensor) -> DiscriminatorOutput:
        """Judge features `h` (N, F) under the labels `y` (N,)."""
        with torch.autocast(h.device.type, enabled=False):
            return self._judge(h.to(torch.promote_types(h.dtype, torch.float32)), y)

    @abstractmethod
    def _judge(self, h: Tensor, y: Tensor) -> DiscriminatorOutput: ...


def _require_classes(num_classes: int, head: str) -> None:
    if num_classes < 1:
        raise UserError(f"the {head} head needs labelled data: choose data with classes, or the linear head")


class LinearHead(_FullPrecisionHead):
    """Realness as one linear function of the features; labels are ignored.

    Args:
        in_features: F.
        num_classes: K; not used, may be 0.
        spectral_norm: Whether to normalise the weight spectrally.
        bias: Whether the logit has a bias.
    """

    def __init__(self, *, in_features: int, num_classes: int, spectral_norm: bool, bias: bool = True) -> None:  # noqa: ARG002
        super().__init__()
        self.linear = spectral.spectral_norm(nn.Linear(in_features, 1, bias=bias), enabled=spectral_norm)

    def _judge(self, h: Tensor, y: Tensor) -> DiscriminatorOutput:  # noqa: ARG002
        return DiscriminatorOutput(logits=self.linear(h).squeeze(1))


class ProjectionHead(_FullPrecisionHead):
    """Realness as w h + b + <embed(y), h> (Miyato & Koyama 2018, "cGANs with Projection Discriminator", section 3).

    Args:
        in_features: F.
        num_classes: K, at least 1.
        spectral_norm: Whether to normalise both the linear weight and the label embedding spectrally.
        bias: Whether the logit has a bias.

    Raises:
        UserError: If there are no classes.
    """

    def __init__(self, *, in_features: int, num_classes: int, spectral_norm: bool, bias: bool = True) -> None:
        super().__init__()
        _require_classes(num_classes, "projection")
        self.linear = spectral.spectral_norm(nn.Linear(in_features, 1, bias=bias), enabled=spectral_norm)
        self.embed = spectral.spectral_norm(nn.Embedding(num_classes, in_features), enabled=spectral_norm)

    def _judge(self, h: Tensor, y: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(logits=self.linear(h).squeeze(1) + (self.embed(y) * h).sum(1))


class AuxiliaryHead(_FullPrecisionHead):
    """Realness and a classifier (Odena et al. 2017, AC-GAN).

    The labels are ignored: the loss compares them with `class_logits` (N, K).

    Args:
        in_features: F.
        num_classes: K, at least 1.
        spectral_norm: Whether to normalise both linear weights spectrally.

    Raises:
        UserError: If there are no classes.
    """

    gives = ("class_logits",)

    def __init__(self, *, in_features: int, num_classes: int, spectral_norm: bool) -> None:
        super().__init__()
        _require_classes(num_classes, "auxiliary")
        self.linear = spectral.spectral_norm(nn.Linear(in_features, 1), enabled=spectral_norm)
        classifier = spectral.spectral_norm(nn.Linear(in_features, num_classes), enabled=spectral_norm)
        self.classifier = spare_from_clipping(classifier)

    def _judge(self, h: Tensor, y: Tensor) -> DiscriminatorOutput:  # noqa: ARG002
        return DiscriminatorOutput(logits=self.linear(h).squeeze(1), class_logits=self.classifier(h))


class EmbeddingHead(_FullPrecisionHead):
    """Realness, an embedding on the unit sphere, and a proxy per class (Kang et al. 2021, ReACGAN).

    Gives the inputs of the D2D-CE loss: `embedding` (N, E) and `class_proxies` (K, E), both of unit length, and their
    cosines as `class_logits` (N, K). The labels are ignored.

    Args:
        in_features: F.
        num_classes: K, at least 1.
        spectral_norm: Whether to normalise the two linear weights spectrally. The proxies are not: they are divided by
            their length.
        embedding_dim: E.

    Raises:
        UserError: If there are no classes.
    """

    gives = ("class_logits", "embedding", "class_proxies")

    def __init__(self, *, in_features: int, num_classes: int, spectral_norm: bool, embedding_dim: int = 512) -> None:
        super().__init__()
        _require_classes(num_classes, "embedding")
        self.linear = spectral.spectral_norm(nn.Linear(in_features, 1), enabled=spectral_norm)
        project = spectral.spectral_norm(nn.Linear(in_features, embedding_dim), enabled=spectral_norm)
        self.project = spare_from_clipping(project)
        self.proxies = spare_from_clipping(nn.Embedding(num_classes, embedding_dim))

    def _judge(self, h: Tensor, y: Tensor) -> DiscriminatorOutput:  # noqa: ARG002
        embedding = F.normalize(self.project(h), dim=1)  # (N, E)
        proxies = F.normalize(self.proxies.weight, dim=1)  # (K, E)
        return DiscriminatorOutput(
            logits=self.linear(h).squeeze(1),
            class_logits=embedding @ proxies.T,
            embedding=embedding,
            class_proxies=proxies,
        )
