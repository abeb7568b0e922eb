"""Spectral normalisation (Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks").

The forward pass reads the singular vectors and never changes them: `power_iteration_` does, once per update of the
weights, independent of the number of forward passes. So a second forward pass or an evaluation changes nothing.

On a GPU the many small products of many layers cost more in launches than in arithmetic. `power_iteration_` and
`normalised_together` therefore take all weights of one shape as one batch of matrices.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

_INITIAL_ITERATIONS = 15

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def output_dim(module: nn.Module) -> int:
    """Which dimension of a module's weight counts its outputs: 1 for a transposed convolution, 0 for all others."""
    return 1 if isinstance(module, nn.ConvTranspose2d) else 0


def full_precision(weight: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, on the device of a weight; a weight without data has no device that knows autocast."""
    return nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False)


class SpectralNorm(nn.Module):
    """The parametrization W -> W / sigma, where sigma = u^T W v estimates the largest singular value of W.

    W is read as a matrix of (outputs, everything else); u and v are constants to autograd (algorithm 1).
    Sigma is computed in the weight's own dtype (float32), also under autocast: bfloat16 keeps under three digits.

    Args:
        weight: The weight to normalise; gives shapes, dtype and device.
        output_dim: The dimension of `weight` that counts outputs.
        eps: Smallest norm that u and v are divided by.

    Attributes:
        held: W / sigma, computed in advance by `normalised_together`; else None.
    """

    u: Tensor  # (outputs,), unit length
    v: Tensor  # (everything else,), unit length

    def __init__(self, weight: Tensor, *, output_dim: int, eps: float) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.eps = eps
        self.held: Tensor | None = None
        matrix = self.matrix(weight)
        self.register_buffer("u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=eps))
        self.register_buffer("v", matrix.new_zeros(matrix.shape[1]))
        for _ in range(_INITIAL_ITERATIONS):
            self.iterate_(weight)

    def matrix(self, weight: Tensor) -> Tensor:
        """Read `weight` as a matrix (outputs, everything else)."""
        return weight.transpose(0, self.output_dim).flatten(1)

    def sigma(self, weight: Tensor) -> Tensor:
        """Estimate the largest singular value of `weight`; a scalar, differentiable in `weight`."""
        with full_precision(weight):
            return self.u @ (self.matrix(weight) @ self.v)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` / sigma, of the same shape and memory format."""
        return weight / self.sigma(weight) if self.held is None else self.held

    def iterate_(self, weight: Tensor) -> None:
        """Move u and v by one power iteration: v <- W^T u / |W^T u|, then u <- W v / |W v|.

        A weight without data (on `meta`) is skipped: torch takes milliseconds for each product there.
        """
        if weight.is_meta:
            return
        with torch.no_grad(), full_precision(weight):
            matrix = self.matrix(weight)
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


def remove_spectral_norm_(network: nn.Module) -> None:
    """Replace every trained weight by its normalised one: the same function, with plain weights.

    The weights are those that a forward pass uses, to the last bit.
    """
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            weight = nn.Parameter(cast(Tensor, module.weight).detach(), trained_weight(module).requires_grad)
            # Not by torch's own function, which changes a class that copies of the module share.
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module.weight = weight


def trained_weight(module: nn.Module) -> nn.Parameter:
    """The parameter behind `module.weight`, with or without spectral normalisation."""
    normalised = parametrize.is_parametrized(module, "weight")
    return module.get_parameter("parametrizations.weight.original" if normalised else "weight")


@contextmanager
def normalised_together(network: nn.Module, *, trained: bool = True) -> Iterator[None]:
    """Normalise every weight of `network` once on entry, all weights of one shape as one batch.

    Updates made inside have no effect on the normalised weights: enter it again for every forward pass in training.

    Args:
        network: Its forward passes use the normalised weights inside the context.
        trained: Whether gradients reach the weights.
    """
    groups = _by_shape(network)
    for group in groups:
        with torch.set_grad_enabled(trained), full_precision(group[0][1]):
            u, v, matrices = _stacked(group)
            # (L, outputs) . (L, outputs): gradients reach each weight through `unbind`, which allocates nothing.
            sigmas = (u * torch.bmm(matrices, v.unsqueeze(2)).squeeze(2)).sum(1).unbind(0)
            for (norm, weight), sigma in zip(group, sigmas, strict=True):
                norm.held = weight / sigma
    try:
        yield
    finally:
        for norm, _ in (pair for group in groups for pair in group):
            norm.held = None


def power_iteration_(network: nn.Module, *, together: bool = True) -> None:
    """Run one power iteration for every spectrally normalised weight in `network`, without waiting for the device.

    Call it once after each update of these weights.

    Args:
        network: Changed in place.
        together: Whether to update weights of one shape as one batch; if false, one by one.
    """
    if not together:
        for norm, weight in _normalised_weights(network):
            norm.iterate_(weight)
        return
    with torch.no_grad():
        for group in _by_shape(network):
            eps = group[0][0].eps
            with full_precision(group[0][1]):
                u, _, matrices = _stacked(group)
                v = F.normalize(torch.bmm(u.unsqueeze(1), matrices).squeeze(1), dim=1, eps=eps)
                u = F.normalize(torch.bmm(matrices, v.unsqueeze(2)).squeeze(2), dim=1, eps=eps)
            torch._foreach_copy_([norm.u for norm, _ in group], list(u.unbind(0)))
            torch._foreach_copy_([norm.v for norm, _ in group], list(v.unbind(0)))


def restart_power_iteration_(network: nn.Module) -> None:
    """Run enough power iterations for sigma to fit weights that were replaced, for example by an initialisation."""
    for _ in range(_INITIAL_ITERATIONS):
        power_iteration_(network)


_Pair: TypeAlias = tuple[SpectralNorm, nn.Parameter]


def _normalised_weights(network: nn.Module) -> Iterator[_Pair]:
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(norm := module[0], SpectralNorm):
            weight = module.get_parameter("original")
            if not weight.is_meta:
                yield norm, weight


def _by_shape(network: nn.Module) -> list[list[_Pair]]:
    """The normalised weights of a network, grouped by the shape of their matrices."""
    groups: dict[object, list[_Pair]] = {}
    for norm, weight in _normalised_weights(network):
        groups.setdefault((len(norm.u), len(norm.v), norm.eps), []).append((norm, weight))
    return list(groups.values())


def _stacked(group: Sequence[_Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors u (L, outputs), v (L, everything else) and the matrices (L, outputs, everything else) of L weights."""
    u = torch.stack([norm.u for norm, _ in group])
    v = torch.stack([norm.v for norm, _ in group])
    return u, v, torch.stack([norm.matrix(weight) for norm, weight in group])
