"""The residual blocks of BigGAN (Brock et al. 2019, appendix B), and the attention layers between them.

Shapes: N batch, C channels, H and W height and width. Convolutions are 3x3 unless said otherwise.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.models import spectral
from cifargan.models.layers import SelfAttention
from cifargan.models.resampling import PooledConv2d, UpsampledConv2d


def conv(in_channels: int, out_channels: int, size: int, *, spectral_norm: bool) -> nn.Conv2d:
    """Make a convolution of odd kernel `size` that keeps height and width."""
    layer = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    return spectral.spectral_norm(layer, enabled=spectral_norm)


def attention_layers(channels: int, sizes: list[int], attention: list[int], *, spectral_norm: bool) -> nn.ModuleList:
    """One layer to follow each block: attention where a listed size is first reached, the identity elsewhere.

    Args:
        channels: C, of every block's output.
        sizes: H = W of every block's output.
        attention: The sizes to attend at.
        spectral_norm: Whether to normalise the attention's convolutions.

    Raises:
        UserError: If a listed size is not reached, or listed twice.
    """
    unreached = sorted(set(attention) - set(sizes))
    if unreached or len(set(attention)) < len(attention):
        raise UserError(f"attention={attention} must list feature-map sizes out of {sorted(set(sizes))}, each once")
    after = {sizes.index(size) for size in attention}
    return nn.ModuleList(
        SelfAttention(channels, spectral_norm=spectral_norm) if index in after else nn.Identity()
        for index in range(len(sizes))
    )


class GeneratorBlock(nn.Module):
    """Norm, ReLU, upsample, conv, norm, ReLU, conv; plus an upsampled 1x1 shortcut.

    Args:
        channels: C, in and out.
        norm: Makes a conditional batch norm for C channels, called with (x, condition).
        spectral_norm: Whether to normalise the convolutions spectrally.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], *, spectral_norm: bool) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = spectral.spectral_norm(UpsampledConv2d(channels, channels), enabled=spectral_norm)
        self.norm2 = norm(channels)
        self.conv2 = conv(channels, channels, 3, spectral_norm=spectral_norm)
        self.shortcut = conv(channels, channels, 1, spectral_norm=spectral_norm)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Double the size of `x` (N, C, H, W) under `condition`; returns (N, C, 2H, 2W)."""
        h = self.conv1(F.relu(self.norm1(x, condition)))  # (N, C, 2H, 2W)
        h = self.conv2(F.relu(self.norm2(h, condition)))
        # A 1x1 convolution and nearest upsampling commute: this order is a quarter of the work.
        result: Tensor = h + F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")
        return result


class DiscriminatorBlock(nn.Module):
    """[ReLU,] conv, ReLU, conv [with average pool]; plus a shortcut of the raw input.

    The shortcut is the identity where neither width nor size changes; else it is pooled alike and goes through a 1x1
    convolution.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        preactivation: Whether the residual branch starts with a ReLU. The first block's must not: its input is an
            image, whose negative values carry information.
        downsample: Whether to halve height and width.
        spectral_norm: Whether to normalise the convolutions spectrally.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, preactivation: bool, downsample: bool, spectral_norm: bool
    ) -> None:
        super().__init__()
        # Out of place, or the shortcut would see the activated input.
        self.activation = nn.ReLU(inplace=False) if preactivation else nn.Identity()
        self.conv1 = conv(in_channels, out_channels, 3, spectral_norm=spectral_norm)
        layer = (
            PooledConv2d(out_channels, out_channels)
            if downsample
            else nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.conv2 = spectral.spectral_norm(layer, enabled=spectral_norm)
        self.pool = nn.AvgPool2d(2) if downsample else nn.Identity()
        changes = downsample or in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, 1, spectral_norm=spectral_norm) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (N, in_channels, H, W) to (N, out_channels, H, W), or half that size."""
        h = self.conv2(F.relu(self.conv1(self.activation(x))))  # pooled where the block halves
        # A 1x1 convolution and average pooling commute, so every block uses the cheaper order.
        result: Tensor = h + self.shortcut(self.pool(x))
        return result
