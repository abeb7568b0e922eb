"""DCGAN: batch-normalised stacks of strided convolutions.

Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
section 3.

Shapes: N batch, Z latent, K classes, S image size, B base channels, n = log2(S / 4) doublings between 4x4 and SxS.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.models import spectral
from cifargan.models.batch_norm import BatchNorm2d
from cifargan.models.interface import Discriminator, DiscriminatorOutput, Generator, HeadFactory, split_at
from cifargan.models.layers import ClassBatchNorm2d, LabelMap, initialize_

_BATCH_NORM_EPS = 1e-5


class IgnoreLabels(nn.Module):
    """Wraps a layer that takes no labels so that it can be called with labels.

    Args:
        layer: Called with `x` alone.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """Return `layer(x)`; the labels `y` (N,) are ignored."""
        output: Tensor = self.layer(x)
        return output


def count_doublings(image_size: int) -> int:
    """The number of doublings from 4x4 to `image_size`.

    Raises:
        UserError: If `image_size` is not a power of two, or is smaller than 16.
    """
    if image_size < 16 or image_size.bit_count() != 1:
        raise UserError(
            f"image_size={image_size}: this model needs a power of two, 16 or larger; resize the images to 32 or 64"
        )
    return image_size.bit_length() - 3


def require_positive(**settings: int) -> None:
    """Refuse sizes below 1.

    Raises:
        UserError: Names the first setting that is below 1.
    """
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"{name}={value}: set the model's {name} to 1 or more")


def feature_dropout(dropout: float) -> nn.Dropout:
    """Dropout for the features (N, F) before a head.

    Raises:
        UserError: If the probability `dropout` is outside [0, 1).
    """
    if not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout}: set the model's dropout to a probability in [0, 1)")
    return nn.Dropout(dropout)


class DCGANGenerator(Generator):
    """z -> 4x4 -> SxS by transposed 4x4 convolutions, batch norm and ReLU after each but the last, tanh after the last.

    Widths halve from B * 2^(n-1) at 4x4 to B at S/2. Weights start as N(0, .02^2), batch-norm gains as N(1, .02^2);
    gains per class start at exactly 1.

    Args:
        num_classes: K in the data. The network's own `num_classes` is 0 unless `conditional`.
        image_size: S, a power of two, 16 or larger.
        latent_dim: Z.
        base_channels: B, the width at S/2; the width at 4x4 follows from it.
        conditional: Whether every batch norm has a gain and a bias per class.
        batch_norm: Whether to use batch norm; without it the convolutions have biases instead.
        spectral_norm: Whether to normalise every convolution spectrally.

    Raises:
        UserError: If the image size does not fit, a size is below 1, or `conditional` lacks batch norm or classes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        latent_dim: int = 100,
        base_channels: int = 64,
        conditional: bool = False,
        batch_norm: bool = True,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(latent_dim=latent_dim, num_classes=num_classes if conditional else 0, image_size=image_size)
        require_positive(latent_dim=latent_dim, base_channels=base_channels)
        if conditional and not batch_norm:
            raise UserError("conditional=true acts through batch norm: set batch_norm=true or conditional=false")
        if conditional and num_classes < 1:
            raise UserError("conditional=true needs labelled data: choose data with classes or set conditional=false")
        widths = [base_channels * 2**k for k in reversed(range(count_doublings(image_size)))]

        def expand(in_channels: int, out_channels: int, *, stride: int = 2, padding: int = 1) -> nn.ConvTranspose2d:
            layer = nn.ConvTranspose2d(in_channels, out_channels, 4, stride, padding, bias=not batch_norm)
            return spectral.spectral_norm(layer, enabled=spectral_norm)

        def norm(channels: int) -> nn.Module:
            if conditional:
                return ClassBatchNorm2d(channels, num_classes, eps=_BATCH_NORM_EPS)
            return IgnoreLabels(BatchNorm2d(channels, eps=_BATCH_NORM_EPS) if batch_norm else nn.Identity())

        self.layers = nn.ModuleList(expand(*pair) for pair in pairwise(widths))
        self.layers.insert(0, expand(latent_dim, widths[0], stride=1, padding=0))
        self.norms = nn.ModuleList(norm(width) for width in widths)
        self.to_image = expand(widths[-1], 3)
        initialize_(self, "normal")

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Generate images (N, 3, S, S) in [-1, 1] from `z` (N, Z) and, if conditional, `y` (N,)."""
        h = z[:, :, None, None]  # (N, Z, 1, 1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = F.relu(norm(layer(h), y))  # (N, B * 2^(n-1), 4, 4), ..., (N, B, S/2, S/2)
        return torch.tanh(self.to_image(h))  # (N, 3, S, S)


class DCGANDiscriminator(Discriminator):
    """SxS -> 4x4 by 4x4 convolutions of stride 2, batch norm on all but the first, LeakyReLU(.2); then a head.

    Widths double from B to B * 2^(n-1). A `LinearHead` on the flattened 4x4 features is the same function as a closing
    4x4 convolution to one channel. The sigmoid is part of the loss. Weights start as N(0, .02^2), the head's too,
    batch-norm gains as N(1, .02^2).

    Args:
        num_classes: K in the data, passed to the head and the label map.
        image_size: S, a power of two, 16 or larger.
        head: Makes the head from the number of features, 16 * B * 2^(n-1).
        base_channels: B, the width at S/2.
        batch_norm: Whether to use batch norm; without it the convolutions have biases instead.
        spectral_norm: Whether to normalise every convolution, the label map's linear layer and the head spectrally.
        dropout: Probability of zeroing a feature before the head.
        label_map: Whether the label is appended to the image as a fourth channel.
        label_embedding_dim: Length of the embedding behind the label map.

    Raises:
        UserError: If the image size does not fit, a size is below 1, `dropout` is not a probability below 1, or the
            label map lacks classes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        head: HeadFactory,
        base_channels: int = 64,
        batch_norm: bool = True,
        spectral_norm: bool = False,
        dropout: float = 0.0,
        label_map: bool = False,
        label_embedding_dim: int = 50,
    ) -> None:
        super().__init__()
        require_positive(base_channels=base_channels, label_embedding_dim=label_embedding_dim)
        widths = [base_channels * 2**k for k in range(count_doublings(image_size))]
        self.label_map = (
            LabelMap(num_classes, label_embedding_dim, image_size, spectral_norm=spectral_norm)
            if label_map
            else IgnoreLabels(nn.Identity())
        )
        self.body = nn.Sequential()
        for depth, (in_channels, out_channels) in enumerate(pairwise([3 + label_map, *widths])):
            conv = nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=not batch_norm)
            self.body.append(spectral.spectral_norm(conv, enabled=spectral_norm))
            if batch_norm and depth > 0:
                self.body.append(BatchNorm2d(out_channels, eps=_BATCH_NORM_EPS))
            self.body.append(nn.LeakyReLU(0.2))
        self.dropout = feature_dropout(dropout)
        self.head = head(in_features=widths[-1] * 4 * 4, num_classes=num_classes, spectral_norm=spectral_norm)
        initialize_(self, "normal")

    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        """Judge images `x` (N, 3, S, S) in [-1, 1] under the labels `y` (N,)."""
        h = self.body(self.label_map(x, y))  # (N, B * 2^(n-1), 4, 4)
        output: DiscriminatorOutput = self.head(self.dropout(h.flatten(1)), y)
        return output

    def blocks(self) -> list[list[nn.Module]]:
        """The convolutions, each with the layers that follow it."""
        return split_at(self.body, nn.Conv2d)
