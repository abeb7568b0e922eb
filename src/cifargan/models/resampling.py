"""3x3 convolutions combined with a change of size, each in two forms that compute the same.

The plain form is that of the papers. The folded form is one 4x4 convolution of stride 2 whose kernel sums the 3x3
kernel over the pixels that the change of size makes equal: 4/9 of the products, and no large feature map in between. It
is exact, borders included; which one is faster depends on the device. Parameters are those of the 3x3 convolution.
"""

from torch import Tensor, nn
from torch.nn import functional as F


def _sums_of_neighbours(kernel: Tensor) -> Tensor:
    """Sum a kernel (O, I, 3, 3) over every 2x2 window, zeros around it; returns (O, I, 4, 4)."""
    return F.avg_pool2d(F.pad(kernel, (1, 1, 1, 1)), 2, stride=1) * 4


class UpsampledConv2d(nn.Conv2d):
    """Nearest upsampling by 2, then a 3x3 convolution that keeps the size.

    Args:
        in_channels: I.
        out_channels: O.

    Attributes:
        folded: Whether to compute it as one transposed convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (N, I, H, W) to (N, O, 2H, 2W)."""
        if self.folded:
            # A transposed convolution reads its kernel backwards, and (inputs, outputs) first.
            kernel = _sums_of_neighbours(self.weight.flip(2, 3)).transpose(0, 1)  # (I, O, 4, 4)
            return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class PooledConv2d(nn.Conv2d):
    """A 3x3 convolution that keeps the size, then 2x2 average pooling.

    Args:
        in_channels: I.
        out_channels: O.

    Attributes:
        folded: Whether to compute it as one strided convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (N, I, H, W), H and W even, to (N, O, H/2, W/2)."""
        if self.folded:
            return F.conv2d(x, _sums_of_neighbours(self.weight) / 4, self.bias, stride=2, padding=1)
        return F.avg_pool2d(super().forward(x), 2)


def fold_(network: nn.Module, *, up: bool, down: bool) -> None:
    """Choose the form of every upsampling or pooled convolution in a network.

    Args:
        network: Changed in place; its function and its state dict stay what they are.
        up: Whether to fold upsampling convolutions.
        down: Whether to fold pooled ones.
    """
    for module in network.modules():
        if isinstance(module, UpsampledConv2d):
            module.folded = up
        elif isinstance(module, PooledConv2d):
            module.folded = down
