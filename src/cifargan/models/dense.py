"""Dense GAN: a dense layer to 4x4, then plain convolutions, by default without batch norm; and its discriminator.

Self-attention (Zhang et al. 2019, "Self-Attention Generative Adversarial Networks") and label maps (after Mirza and
Osindero 2014, "Conditional Generative Adversarial Nets") are optional.

Shapes: N batch, Z latent, K classes, S image size, C channels.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.models import spectral
from cifargan.models.batch_norm import BatchNorm2d
from cifargan.models.dcgan import IgnoreLabels, count_doublings, feature_dropout, require_positive
from cifargan.models.interface import Discriminator, DiscriminatorOutput, Generator, HeadFactory, split_at
from cifargan.models.layers import LabelMap, SelfAttention, initialize_


def _require_sizes(name: str, wanted: list[int], available: list[int]) -> None:
    for size in wanted:
        if size not in available:
            sizes = ", ".join(map(str, sorted(available)))
            raise UserError(f"{name}: there is no map of size {size} in this network: choose from {sizes}")


class DenseGenerator(Generator):
    """z -> linear -> 4x4 -> SxS by transposed 4x4 convolutions of stride 2, then a 3x3 convolution and tanh.

    An activation follows every layer but the last. Weights start Glorot-uniform (Glorot & Bengio 2010), biases at zero:
    without normalisation, larger weights (He et al. 2015) saturated the tanh within 500 updates.

    Args:
        num_classes: K in the data. The network's own `num_classes` is 0 unless it has a label map.
        image_size: S, a power of two, 16 or larger.
        latent_dim: Z.
        stem_channels: Channels of the 4x4 map.
        channels: C, the width of every later map.
        activation: "relu", or "leaky_relu" with slope .2.
        attention: Sizes (4, 8, ..., S) of the maps that get a self-attention block.
        label_map_size: Size (4, 8, ..., S) of the feature map that the label map is appended to, after its
            attention. None: unconditional.
        label_embedding_dim: Length of the embedding behind the label map.
        batch_norm: Whether there is batch norm before every activation, in place of the layer's bias. Use it with
            spectral norm (Zhang et al. 2019 have both in G): otherwise every layer's gain is at most 1, and the images hardly depend
            on the latent.
        spectral_norm: Whether to normalise every layer spectrally, including the label map's linear layer, but not
            its embedding.

    Raises:
        UserError: If the image size does not fit, a size is below 1, `attention` or `label_map_size` names a size that
            does not occur, or the label map lacks classes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        latent_dim: int = 100,
        stem_channels: int = 256,
        channels: int = 128,
        activation: Literal["relu", "leaky_relu"] = "leaky_relu",
        attention: list[int] = [],  # noqa: B006 (only read; the settings' schema shows this default)
        label_map_size: int | None = None,
        label_embedding_dim: int = 50,
        batch_norm: bool = False,
        spectral_norm: bool = False,
    ) -> None:
        conditional = label_map_size is not None
        super().__init__(latent_dim=latent_dim, num_classes=num_classes if conditional else 0, image_size=image_size)
        require_positive(latent_dim=latent_dim, stem_channels=stem_channels, channels=channels)
        require_positive(label_embedding_dim=label_embedding_dim)
        sizes = [4 * 2**k for k in range(count_doublings(image_size) + 1)]
        widths = [stem_channels] + [channels] * (len(sizes) - 1)
        _require_sizes("attention", attention, sizes)
        _require_sizes("label_map_size", [label_map_size] if label_map_size is not None else [], sizes)
        activate = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.2)}[activation]

        def norm(width: int) -> nn.Module:
            return BatchNorm2d(width) if batch_norm else nn.Identity()

        self.layers = nn.ModuleList()  # one per size, as are the next two
        self.attentions = nn.ModuleList()
        self.label_maps = nn.ModuleList()
        stem = spectral.spectral_norm(
            nn.Linear(latent_dim, stem_channels * 4 * 4, bias=not batch_norm), enabled=spectral_norm
        )
        self.layers.append(nn.Sequential(stem, nn.Unflatten(1, (stem_channels, 4, 4)), norm(stem_channels), activate))
        for size, (in_channels, out_channels) in zip(sizes, pairwise(widths), strict=False):
            expand = nn.ConvTranspose2d(
                in_channels + (size == label_map_size), out_channels, 4, 2, 1, bias=not batch_norm
            )
            expand = spectral.spectral_norm(expand, enabled=spectral_norm)
            self.layers.append(nn.Sequential(expand, norm(out_channels), activate))
        for size, width in zip(sizes, widths, strict=True):
            attend = SelfAttention(width, spectral_norm=spectral_norm) if size in attention else nn.Identity()
            self.attentions.append(attend)
            self.label_maps.append(
                LabelMap(num_classes, label_embedding_dim, size, spectral_norm=spectral_norm)
                if size == label_map_size
                else IgnoreLabels(nn.Identity())
            )
        to_image = nn.Conv2d(widths[-1] + (image_size == label_map_size), 3, 3, padding=1)
        self.to_image = spectral.spectral_norm(to_image, enabled=spectral_norm)
        initialize_(self, "xavier")

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Generate images (N, 3, S, S) in [-1, 1] from `z` (N, Z) and, if there is a label map, `y` (N,)."""
        h = z
        for layer, attend, label_map in zip(self.layers, self.attentions, self.label_maps, strict=True):
            h = label_map(attend(layer(h)), y)  # (N, stem, 4, 4), (N, C, 8, 8), ..., (N, C, S, S)
        return torch.tanh(self.to_image(h))  # (N, 3, S, S)


class DenseDiscriminator(Discriminator):
    """3x3 convolutions with LeakyReLU(.2), flatten, dropout, head.

    Weights start Glorot-uniform (Glorot & Bengio 2010), biases at zero, also in the head.

    Args:
        num_classes: K in the data, passed to the head and the label map.
        image_size: S, a power of two, 16 or larger.
        head: Makes the head from the number of features.
        channels: Width of each convolution. All have stride 2, except the first if `full_resolution_stem`.
        full_resolution_stem: Whether the first convolution has stride 1.
        attention: Sizes of the maps that get a self-attention block; by default there are maps of S, S/2, S/4 and S/8.
        label_map: Whether the label is appended to the image as a fourth channel.
        label_embedding_dim: Length of the embedding behind the label map.
        dropout: Probability of zeroing a feature before the head.
        spectral_norm: Whether to normalise every layer spectrally, including the label map's linear layer and the
            head, but not the label map's embedding.

    Raises:
        UserError: If the image size does not fit, a size is below 1, there are no convolutions or so many that the map
            shrinks below 2x2, `attention` names a size that does not occur, `dropout` is not a probability below 1, or
            the label map lacks classes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        head: HeadFactory,
        channels: list[int] = [64, 128, 128, 256],  # noqa: B006 (as above)
        full_resolution_stem: bool = True,
        attention: list[int] = [],  # noqa: B006 (as above)
        label_map: bool = False,
        label_embedding_dim: int = 50,
        dropout: float = 0.4,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        count_doublings(image_size)  # raises for sizes that do not halve evenly
        require_positive(label_embedding_dim=label_embedding_dim)
        if min(channels, default=0) < 1:
            raise UserError(f"channels={channels}: list the width of every convolution, each 1 or more")
        strides = [1 if full_resolution_stem else 2] + [2] * (len(channels) - 1)
        sizes = [image_size // (strides[0] * 2**k) for k in range(len(channels))]
        if sizes[-1] < 2:
            raise UserError(
                f"channels={channels}: so many convolutions shrink {image_size}x{image_size} below 2x2; list fewer"
            )
        _require_sizes("attention", attention, sizes)

        self.label_map = (
            LabelMap(num_classes, label_embedding_dim, image_size, spectral_norm=spectral_norm)
            if label_map
            else IgnoreLabels(nn.Identity())
        )
        self.body = nn.Sequential()
        widths = pairwise([3 + label_map, *channels])
        for size, stride, (in_channels, out_channels) in zip(sizes, strides, widths, strict=True):
            conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
            self.body.extend([spectral.spectral_norm(conv, enabled=spectral_norm), nn.LeakyReLU(0.2)])
            if size in attention:
                self.body.append(SelfAttention(out_channels, spectral_norm=spectral_norm))
        self.dropout = feature_dropout(dropout)
        features = channels[-1] * sizes[-1] ** 2
        self.head = head(in_features=features, num_classes=num_classes, spectral_norm=spectral_norm)
        initialize_(self, "xavier")

    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        """Judge images `x` (N, 3, S, S) in [-1, 1] under the labels `y` (N,)."""
        h = self.body(self.label_map(x, y))  # (N, channels[-1], S', S'), S' the last size
        output: DiscriminatorOutput = self.head(self.dropout(h.flatten(1)), y)
        return output

    def blocks(self) -> list[list[nn.Module]]:
        """The convolutions, each with the layers that follow it."""
        return split_at(self.body, nn.Conv2d)
