"""Spectral normalisation (Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks").

The forward pass reads the singular vectors and never moves them: `power_iteration_` does, once per update of the
weights, however many forward passes that update takes. So a second forward pass or an evaluation changes nothing.
"""

from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

_INITIAL_ITERATIONS = 15

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def output_dim(module: nn.Module) -> int:
    """Which dimension of a module's weight counts its outputs: 1 for a transposed convolution, 0 for all others."""
    return 1 if isinstance(module, nn.ConvTranspose2d) else 0


class SpectralNorm(nn.Module):
    """The parametrization W -> W / sigma, where sigma = u^T W v estimates the largest singular value of W.

    W is read as a matrix of (outputs, everything else); u and v are constants to autograd (algorithm 1).
    Sigma is computed in the weight's own dtype (float32), whatever autocast says: bfloat16 keeps under three digits.

    Args:
        weight: The weight to normalise; gives shapes, dtype and device.
        output_dim: The dimension of `weight` that counts outputs.
        eps: Smallest norm that u and v are divided by.
    """

    u: Tensor  # (outputs,), unit length
    v: Tensor  # (everything else,), unit length

    def __init__(self, weight: Tensor, *, output_dim: int, eps: float) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.eps = eps
        matrix = self._matrix(weight)
        self.register_buffer("u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=eps))
        self.register_buffer("v", matrix.new_zeros(matrix.shape[1]))
        for _ in range(_INITIAL_ITERATIONS):
            self.iterate_(weight)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, self.output_dim).flatten(1)  # (outputs, everything else)

    def sigma(self, weight: Tensor) -> Tensor:
        """Estimate the largest singular value of `weight`; a scalar, differentiable in `weight`."""
        with torch.autocast(weight.device.type, enabled=False):
            return self.u @ (self._matrix(weight) @ self.v)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` / sigma, of the same shape and memory format."""
        return weight / self.sigma(weight)

    def iterate_(self, weight: Tensor) -> None:
        """Move u and v by one power iteration: v <- W^T u / |W^T u|, then u <- W v / |W v|."""
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            matrix = self._matrix(weight)
            self.v.copy_(F.normalize(matrix.T @ self.u, dim=0, eps=self.eps))
            self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=self.eps))


def spectral_norm(module: ModuleT, *, enabled: bool = True, eps: float = 1e-6) -> ModuleT:
    """Divide a layer's weight by its largest singular value, in place.

    Args:
        module: A linear, convolution, transposed convolution or embedding layer.
        enabled: False leaves the layer as it is, so that callers need no branch.
        eps: Smallest norm that the singular vectors are divided by.

    Returns:
        `module` itself; what is trained is now `module.parametrizations.weight.original`.
    """
    if enabled:
        weight = cast(Tensor, module.weight)
        parametrization = SpectralNorm(weight, output_dim=output_dim(module), eps=eps)
        parametrize.register_parametrization(module, "weight", parametrization)
    return module


def trained_weight(module: nn.Module) -> nn.Parameter:
    """The parameter behind `module.weight`, with or without spectral normalisation."""
    normalised = parametrize.is_parametrized(module, "weight")
    return module.get_parameter("parametrizations.weight.original" if normalised else "weight")


def power_iteration_(network: nn.Module) -> None:
    """Run one power iteration for every spectrally normalised weight in `network`; nothing waits for the device.

    Call it once after each update of these weights.
    """
    for norm, weight in _normalised_weights(network):
        norm.iterate_(weight)


def restart_power_iteration_(network: nn.Module) -> None:
    """Let sigma catch up with weights that were replaced as a whole, as by an initialisation."""
    for _ in range(_INITIAL_ITERATIONS):
        power_iteration_(network)


def _normalised_weights(network: nn.Module) -> Iterator[tuple[SpectralNorm, nn.Parameter]]:
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(norm := module[0], SpectralNorm):
            yield norm, module.get_parameter("original")
