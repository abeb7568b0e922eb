"""The interfaces of generators, discriminators and heads.

Shapes: N batch, Z latent, K classes, F features. Images are (N, 3, H, W) float in [-1, 1]; labels are (N,) int64.
Labels are always passed; unconditional networks ignore them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)


class Generator(nn.Module, ABC):
    """Maps latents to images.

    Attributes:
        latent_dim: Z, the length of a latent vector.
        num_classes: K, or 0 when the network ignores labels.
        image_size: H = W of the images.
    """

    def __init__(self, *, latent_dim: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.image_size = image_size

    @abstractmethod
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Generate images.

        Args:
            z: (N, Z) float latents, standard normal unless truncated.
            y: (N,) int64 labels in [0, K).

        Returns:
            (N, 3, H, W) float images in [-1, 1].
        """


class DiscriminatorOutput(NamedTuple):
    """A discriminator's output for a batch."""

    logits: Tensor  # (N,) realness, before any sigmoid
    class_logits: Tensor | None = None  # (N, K), from heads that classify
    embedding: Tensor | None = None  # (N, E) of unit length, from heads that embed
    class_proxies: Tensor | None = None  # (K, E) of unit length, beside `embedding`

    def split(self, sizes: Sequence[int]) -> list["DiscriminatorOutput"]:
        """Split the output of a joint pass into parts of the given sizes. All parts share the class proxies."""

        def parts(whole: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * len(sizes) if whole is None else torch.split(whole, list(sizes))

        columns = zip(
            torch.split(self.logits, list(sizes)), parts(self.class_logits), parts(self.embedding), strict=True
        )
        return [DiscriminatorOutput(*column, class_proxies=self.class_proxies) for column in columns]


class Head(nn.Module, ABC):
    """The last layer of a discriminator: features to realness and, for some heads, to classes.

    Its constructor takes `in_features` (F), `num_classes` (K) and `spectral_norm`, and its own settings beside them.

    Attributes:
        gives: the fields of `DiscriminatorOutput`, beside `logits`, that it fills; class terms and penalties need them.
    """

    gives: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, h: Tensor, y: Tensor) -> DiscriminatorOutput:
        """Judge features `h` (N, F) under the labels `y` (N,)."""


class HeadFactory(Protocol):
    """Makes the head when the number of features is known."""

    def __call__(self, *, in_features: int, num_classes: int, spectral_norm: bool) -> Head:
        """Build a head for `in_features` features and `num_classes` classes."""
        ...


class AcrossBatch(nn.Module):
    """Base class of layers whose output for one image depends on the other images of the batch, beside batch norm."""


class Discriminator(nn.Module, ABC):
    """Judges images: layers of any kind, then usually a `Head`.

    Its constructor takes `num_classes` and `image_size`, `head` (a `HeadFactory`) unless it makes its last layer itself,
    and its own settings beside them.

    A part that takes only labels, or gives only class logits, does not affect the slope of the realness logit over
    images: mark it by `spare_from_clipping`.

    Attributes:
        gives: as of `Head`, for a discriminator that takes no head.
    """

    gives: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        """Judge images.

        Args:
            x: (N, 3, H, W) float images in [-1, 1].
            y: (N,) int64 labels in [0, K).

        Returns:
            Logits, never probabilities.
        """

    @property
    def joint_pass(self) -> bool:
        """Whether real and generated images may share one forward pass.

        False with any layer that looks across the batch: its output would depend on the mixture of real and generated
        images.
        """
        return not any(isinstance(module, _BatchNorm | AcrossBatch) for module in self.modules())

    def blocks(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks from the image on, each as its layers, which `trainer.freeze_d` can freeze; () for none."""
        return ()


def split_at(body: nn.Sequential, *starts: type[nn.Module]) -> list[list[nn.Module]]:
    """Split a sequence of layers into blocks, each beginning with a layer of one of the given classes."""
    blocks: list[list[nn.Module]] = []
    for layer in body:
        if isinstance(layer, starts):
            blocks.append([])
        blocks[-1].append(layer)
    return blocks


def spare_from_clipping(module: Module) -> Module:
    """Mark a part of a discriminator, with all in it, to be excluded from weight clipping; returns it."""
    module.spared_by_clipping = True  # type: ignore[assignment]
    return module
