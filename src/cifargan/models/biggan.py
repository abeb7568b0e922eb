"""BigGAN for small images (Brock et al. 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis").

Residual networks of constant width. With the default settings they have 9,416,196 and (with a projection head)
2,415,170 parameters for ten classes at 32x32.

Shapes: N batch, Z latent, K classes, C channels, E length of the class embedding.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.models import spectral
from cifargan.models.batch_norm import BatchNorm2d
from cifargan.models.dcgan import require_positive
from cifargan.models.interface import Discriminator, DiscriminatorOutput, Generator, HeadFactory, split_at
from cifargan.models.layers import ClassBatchNorm2d, ConditionalBatchNorm2d, initialize_
from cifargan.models.residual import DiscriminatorBlock, GeneratorBlock, attention_layers, conv


def _check_image_size(image_size: int) -> None:
    if image_size < 8 or image_size & (image_size - 1):
        raise UserError(f"BigGAN needs an image_size that is a power of two and at least 8, not {image_size}")


class BigGANGenerator(Generator):
    """Latent and label to image through residual blocks under conditional batch norm.

    A linear layer gives 4x4 feature maps; log2(image_size / 4) blocks each double them; batch norm, ReLU, a 3x3
    convolution and tanh make the image.

    Args:
        num_classes: K, at least 1.
        image_size: H = W of the images; a power of two, at least 8.
        latent_dim: Z.
        channels: C, the width of every block; a multiple of 8 where there is attention.
        attention: Feature-map sizes to attend at, each after the block that reaches it; [] for none.
        conditioning: "shared": every block's gains and biases are linear in one class embedding. "per_class": every
            batch norm has its own table with a gain and a bias per class.
        class_embedding_dim: E of the shared class embedding; not used with "per_class".
        hierarchical: Whether to split z evenly between the stem and the blocks; each block concatenates its part with
            the class embedding (skip-z). If false, the stem gets all of z. Needs conditioning="shared".
        spectral_norm: Whether to normalise every convolution and linear layer spectrally. The class embedding never is.
        batch_norm_eps: Added to the variances of all batch norms.
        init: How weights are drawn: "orthogonal", or "normal" for N(0, 0.02^2). Biases start at zero.

    Raises:
        UserError: If settings contradict each other: no classes, a size that is not a power of two, attention at a size
            that no block reaches, a latent_dim that does not split evenly, hierarchical with "per_class".
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        latent_dim: int = 80,
        channels: int = 384,
        attention: list[int] = [16],  # noqa: B006 - a plain default for the config schema; it is only read
        conditioning: Literal["shared", "per_class"] = "shared",
        class_embedding_dim: int = 128,
        hierarchical: bool = True,
        spectral_norm: bool = True,
        batch_norm_eps: float = 1e-4,
        init: Literal["orthogonal", "normal"] = "orthogonal",
    ) -> None:
        super().__init__(latent_dim=latent_dim, num_classes=num_classes, image_size=image_size)
        _check_image_size(image_size)
        require_positive(latent_dim=latent_dim, channels=channels, class_embedding_dim=class_embedding_dim)
        if num_classes < 1:
            raise UserError("the BigGAN generator needs labelled data: choose data with classes or another model")
        if hierarchical and conditioning == "per_class":
            raise UserError(
                'BigGAN: hierarchical=true needs conditioning="shared"; with "per_class" set hierarchical=false'
            )
        num_blocks = image_size.bit_length() - 3  # log2(image_size / 4)
        if hierarchical and latent_dim % (num_blocks + 1):
            raise UserError(
                f"BigGAN: hierarchical=true splits latent_dim={latent_dim} into {num_blocks + 1} equal chunks: "
                f"make it a multiple of {num_blocks + 1}"
            )
        self.chunks = num_blocks + 1 if hierarchical else 1
        chunk_dim = latent_dim // self.chunks

        self.embed: nn.Module
        norm: Callable[[int], nn.Module]
        if conditioning == "shared":
            self.embed = nn.Embedding(num_classes, class_embedding_dim)
            condition_dim = class_embedding_dim + (chunk_dim if hierarchical else 0)
            norm = partial(
                ConditionalBatchNorm2d, condition_dim=condition_dim, eps=batch_norm_eps, spectral_norm=spectral_norm
            )
        else:
            self.embed = nn.Identity()  # the labels themselves are the condition
            norm = partial(ClassBatchNorm2d, num_classes=num_classes, eps=batch_norm_eps)

        self.stem = spectral.spectral_norm(nn.Linear(chunk_dim, channels * 4 * 4), enabled=spectral_norm)
        self.blocks = nn.ModuleList(
            GeneratorBlock(channels, norm, spectral_norm=spectral_norm) for _ in range(num_blocks)
        )
        sizes = [8 << index for index in range(num_blocks)]
        self.attention = attention_layers(channels, sizes, attention, spectral_norm=spectral_norm)
        self.norm = BatchNorm2d(channels, eps=batch_norm_eps)
        self.conv = conv(channels, 3, 3, spectral_norm=spectral_norm)
        initialize_(self, init)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Generate images; see `Generator.forward`."""
        stem_z, *block_z = z.chunk(self.chunks, dim=1)  # (N, Z / chunks) each
        label = self.embed(y)  # (N, E), or y itself
        # Without hierarchy there are no chunks for the blocks, and the label is the whole condition.
        conditions = [torch.cat([label, chunk], dim=1) for chunk in block_z] or [label] * len(self.blocks)
        h = self.stem(stem_z).unflatten(1, (-1, 4, 4))  # (N, C, 4, 4)
        for block, attention, condition in zip(self.blocks, self.attention, conditions, strict=True):
            h = attention(block(h, condition))  # (N, C, 2H, 2W)
        return torch.tanh(self.conv(F.relu(self.norm(h))))  # (N, 3, image_size, image_size)


class BigGANDiscriminator(Discriminator):
    """Image to features through residual blocks, summed over positions; then the head.

    The first log2(image_size / 8) blocks halve the size down to 8x8, and two more keep it: four blocks at 32x32.

    Args:
        num_classes: K, passed to the head.
        image_size: H = W of the images; a power of two, at least 8.
        head: Makes the last layer.
        channels: C, the width of every block; a multiple of 8 where there is attention.
        attention: Feature-map sizes to attend at, each after the first block whose output has it; [] for none.
        spectral_norm: Whether to normalise every layer spectrally, those of the head included.
        init: How weights are drawn: "orthogonal", or "normal" for N(0, 0.02^2). Biases start at zero.

    Raises:
        UserError: If image_size is not a power of two, if there is attention at a size that no block has, or if the
            head needs classes and there are none.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        head: HeadFactory,
        channels: int = 192,
        attention: list[int] = [16],  # noqa: B006 - a plain default for the config schema; it is only read
        spectral_norm: bool = True,
        init: Literal["orthogonal", "normal"] = "orthogonal",
    ) -> None:
        super().__init__()
        _check_image_size(image_size)
        require_positive(channels=channels)
        num_downsampling = image_size.bit_length() - 4  # log2(image_size / 8)
        layers: list[nn.Module] = []
        sizes = [max(image_size >> (index + 1), 8) for index in range(num_downsampling + 2)]
        for index, attend in enumerate(attention_layers(channels, sizes, attention, spectral_norm=spectral_norm)):
            block = DiscriminatorBlock(
                3 if index == 0 else channels,
                channels,
                preactivation=index > 0,
                downsample=index < num_downsampling,
                spectral_norm=spectral_norm,
            )
            layers += [block, attend]
        self.body = nn.Sequential(*layers)
        self.head = head(in_features=channels, num_classes=num_classes, spectral_norm=spectral_norm)
        initialize_(self, init)

    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        """Judge images; see `Discriminator.forward`."""
        h = F.relu(self.body(x)).sum(dim=(2, 3))  # (N, C)
        output: DiscriminatorOutput = self.head(h, y)
        return output

    def blocks(self) -> list[list[nn.Module]]:
        """The residual blocks, each with its attention."""
        return split_at(self.body, DiscriminatorBlock)
