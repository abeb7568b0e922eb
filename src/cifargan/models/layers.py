"""Layers that more than one family of networks uses.

Shapes: N batch, C channels, K classes, D length of a condition vector, E length of an embedding.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cifargan.errors import UserError
from cifargan.models import spectral
from cifargan.models.batch_norm import BatchNorm2d
from cifargan.models.spectral import power_iteration_, spectral_norm

__all__ = [
    "ClassBatchNorm2d",
    "ConditionalBatchNorm2d",
    "InitScheme",
    "LabelMap",
    "SelfAttention",
    "initialize_",
    "power_iteration_",
    "spectral_norm",
]

InitScheme = Literal["orthogonal", "normal", "xavier", "default"]


def _modulate(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Scale and shift `x` (N, C, H, W) with one gain and bias (N, C) per image and channel."""
    return torch.addcmul(bias[:, :, None, None], x, gain[:, :, None, None])


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose gain and bias are linear in a condition vector (Brock et al. 2019, BigGAN, appendix B).

    gain = 1 + A c and bias = B c, without constants: a condition of zeros is plain batch norm.

    Args:
        channels: C.
        condition_dim: D.
        eps: Added to the variance.
        spectral_norm: Whether to normalise A and B spectrally.
    """

    def __init__(self, channels: int, condition_dim: int, *, eps: float, spectral_norm: bool) -> None:
        super().__init__()
        self.norm = BatchNorm2d(channels, eps=eps, affine=False)
        self.gain = spectral.spectral_norm(nn.Linear(condition_dim, channels, bias=False), enabled=spectral_norm)
        self.bias = spectral.spectral_norm(nn.Linear(condition_dim, channels, bias=False), enabled=spectral_norm)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise `x` (N, C, H, W) under `condition` (N, D)."""
        return _modulate(self.norm(x), 1 + self.gain(condition), self.bias(condition))


class ClassBatchNorm2d(nn.Module):
    """Batch norm with its own gain and bias for every class (de Vries et al. 2017; Miyato & Koyama 2018).

    Starts as plain batch norm: gains of one, biases of zero. They are bare parameters, so `initialize_` leaves them.

    Args:
        channels: C.
        num_classes: K.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, num_classes: int, *, eps: float) -> None:
        super().__init__()
        self.norm = BatchNorm2d(channels, eps=eps, affine=False)
        self.gain = nn.Parameter(torch.ones(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Normalise `x` (N, C, H, W) under the labels `y` (N,)."""
        return _modulate(self.norm(x), F.embedding(y, self.gain), F.embedding(y, self.bias))


class SelfAttention(nn.Module):
    """x + gamma * attention(x) over all positions (Zhang et al. 2019, SAGAN, equations 1 to 3, pooled as in BigGAN).

    Queries (theta) and keys (phi) have C/8 channels, values (g) C/2; keys and values are max-pooled to a quarter of the
    positions; scores are not divided by the square root of their length. gamma starts at 0, so the layer starts as the
    identity.

    Args:
        channels: C, a multiple of 8.
        spectral_norm: Whether to normalise the four 1x1 convolutions spectrally.

    Raises:
        UserError: If C is not a multiple of 8.
    """

    def __init__(self, channels: int, *, spectral_norm: bool) -> None:
        super().__init__()
        if channels % 8:
            raise UserError(
                f"self-attention needs a multiple of 8 channels, not {channels}: change the model's channels"
            )

        def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
            return spectral.spectral_norm(nn.Conv2d(in_channels, out_channels, 1, bias=False), enabled=spectral_norm)

        self.theta = conv1x1(channels, channels // 8)
        self.phi = conv1x1(channels, channels // 8)
        self.g = conv1x1(channels, channels // 2)
        self.out = conv1x1(channels // 2, channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Attend over `x` (N, C, H, W), H and W even; the result has the same shape."""
        queries = self.theta(x).flatten(2)  # (N, C/8, HW)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2)  # (N, C/8, HW/4)
        values = F.max_pool2d(self.g(x), 2).flatten(2)  # (N, C/2, HW/4)
        # Written out because the fused kernels cannot be differentiated twice, as gradient penalties do.
        attention = torch.softmax(queries.transpose(1, 2) @ keys, dim=-1)  # (N, HW, HW/4)
        attended = attention @ values.transpose(1, 2)  # (N, HW, C/2), which is channels-last
        attended = attended.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])  # (N, C/2, H, W)
        result: Tensor = x + self.gamma * self.out(attended)
        return result


class LabelMap(nn.Module):
    """Appends a label to feature maps or images as one more channel: embedding -> linear -> a map.

    Args:
        num_classes: K.
        embedding_dim: E.
        size: H = W of the map.
        spectral_norm: Whether to normalise the linear layer spectrally.

    Raises:
        UserError: If there are no classes.
    """

    spared_by_clipping: ClassVar[bool] = True  # its parameters see labels only, never images

    def __init__(self, num_classes: int, embedding_dim: int, size: int, *, spectral_norm: bool = False) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError("a label map needs labelled data: choose data with classes or an unconditional model")
        self.size = size
        self.embed = nn.Embedding(num_classes, embedding_dim)
        self.linear = spectral.spectral_norm(nn.Linear(embedding_dim, size * size), enabled=spectral_norm)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Append the map of `y` (N,) to `x` (N, C, size, size); returns (N, C + 1, size, size), the map last."""
        label_map = self.linear(self.embed(y)).view(-1, 1, self.size, self.size)  # (N, 1, size, size)
        return torch.cat([x, label_map], dim=1)


def _orthogonal_(module: nn.Module, weight: Tensor) -> None:
    rows_first = weight.transpose(0, spectral.output_dim(module))
    rows_first.copy_(nn.init.orthogonal_(torch.empty(rows_first.shape, dtype=weight.dtype, device=weight.device)))


def initialize_(network: nn.Module, scheme: InitScheme, std: float = 0.02) -> None:
    """Draw the weights of every convolution, linear and embedding layer again, with zero biases, in place.

    Spectrally normalised layers are drawn before normalisation, and their singular vectors follow. Parameters that are
    not a layer's weight (gamma of `SelfAttention`, the tables of `ClassBatchNorm2d`) stay as they are.

    Args:
        network: What to initialise.
        scheme: "orthogonal": W W^T = I, W read as (outputs, everything else). "normal": N(0, std^2), and the gains of
            affine batch norms N(1, std^2), as DCGAN has it. "xavier": Glorot's uniform, but N(0, 1)
            for the embedding of a `LabelMap`, whose map would otherwise be too small relative to the
            image. "default": PyTorch's own; nothing changes.
        std: Standard deviation for "normal".
    """
    if scheme == "default":
        return
    draw_: Callable[[nn.Module, Tensor], object] = {
        "orthogonal": _orthogonal_,
        "normal": lambda _, weight: nn.init.normal_(weight, 0.0, std),
        "xavier": lambda _, weight: nn.init.xavier_uniform_(weight),
    }[scheme]
    gain_std = std if scheme == "normal" else 0.0
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
                draw_(module, spectral.trained_weight(module))
                if not isinstance(module, nn.Embedding) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _BatchNorm) and module.affine:
                nn.init.normal_(module.weight, 1.0, gain_std)
                nn.init.zeros_(module.bias)
        if scheme == "xavier":
            for label_map in (module for module in network.modules() if isinstance(module, LabelMap)):
                nn.init.normal_(label_map.embed.weight)
    spectral.restart_power_iteration_(network)
