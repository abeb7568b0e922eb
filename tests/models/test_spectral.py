"""Spectral normalisation against singular value decompositions, the textbook update and closed-form gradients."""

import copy
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from cifargan.models.spectral import (
    SpectralNorm,
    normalised_together,
    power_iteration_,
    spectral_norm,
    trained_weight,
)

LAYERS = ["conv", "transposed conv", "linear", "embedding"]


def make(name: str) -> nn.Module:
    # No two sizes agree, so that a weight read along the wrong dimension gives other singular values.
    torch.manual_seed(1)
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(4, 7, 3),
        "transposed conv": nn.ConvTranspose2d(4, 7, 3),
        "linear": nn.Linear(5, 8),
        "embedding": nn.Embedding(10, 6),
    }
    return spectral_norm(layers[name])


def weight_of(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight).detach()


def matricise(layer: nn.Module, weight: Tensor) -> Tensor:
    """(outputs, everything else), written out per kind of layer."""
    if isinstance(layer, nn.ConvTranspose2d):
        return torch.stack([weight[:, out].reshape(-1) for out in range(weight.shape[1])])
    return weight.reshape(weight.shape[0], -1)


def norm_of(layer: nn.Module) -> SpectralNorm:
    [norm] = [module for module in layer.modules() if isinstance(module, SpectralNorm)]
    return norm


@pytest.mark.parametrize("name", LAYERS)
def test_the_largest_singular_value_is_close_to_one_from_the_start_and_becomes_one(name: str) -> None:
    layer = make(name)
    for iterations, tolerance in ((0, 0.05), (300, 1e-3)):
        for _ in range(iterations):
            power_iteration_(layer)
        largest = torch.linalg.svdvals(matricise(layer, weight_of(layer)))[0].item()
        assert largest == pytest.approx(1.0, abs=tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_one_iteration_is_one_textbook_step(name: str) -> None:
    layer = make(name)
    norm = norm_of(layer)
    matrix = matricise(layer, trained_weight(layer).detach()).double()
    norm.u.copy_(torch.nn.functional.normalize(torch.randn(matrix.shape[0]), dim=0))
    v = matrix.T @ norm.u.double()
    v = v / v.norm()
    u = matrix @ v
    u = u / u.norm()
    power_iteration_(layer)
    torch.testing.assert_close(norm.v.double(), v, atol=1e-6, rtol=0)
    torch.testing.assert_close(norm.u.double(), u, atol=1e-6, rtol=0)
    expected = trained_weight(layer).double() / (u @ matrix @ v)
    torch.testing.assert_close(weight_of(layer).double(), expected.detach(), atol=1e-6, rtol=1e-6)


def test_forward_never_iterates() -> None:
    layer = make("conv").train()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.randn(2, 4, 5, 5)
    first = layer(x)
    first.sum().backward()
    torch.testing.assert_close(layer(x), first, atol=0, rtol=0)
    torch.testing.assert_close(dict(layer.state_dict()), before, atol=0, rtol=0)


def test_gradient_treats_singular_vectors_as_constants() -> None:
    # d/dW sum(G * W / sigma) = (G - <G, W / sigma> u v^T) / sigma, u and v constant.
    layer = make("conv").double()
    norm, weight = norm_of(layer), trained_weight(layer)
    upstream = torch.randn_like(weight)
    [grad] = torch.autograd.grad((upstream * cast(Tensor, layer.weight)).sum(), weight)
    matrix, matrix_upstream = weight.detach().flatten(1), upstream.flatten(1)
    sigma = norm.u @ matrix @ norm.v
    along = (matrix_upstream * matrix / sigma).sum()
    expected = (matrix_upstream - along * torch.outer(norm.u, norm.v)) / sigma
    torch.testing.assert_close(grad.flatten(1), expected, atol=1e-12, rtol=1e-12)


def test_state_dict_round_trip() -> None:
    source = make("conv")
    torch.manual_seed(2)
    target = spectral_norm(nn.Conv2d(4, 7, 3))
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(weight_of(target), weight_of(source), atol=0, rtol=0)
    power_iteration_(source)
    power_iteration_(target)
    torch.testing.assert_close(dict(target.state_dict()), dict(source.state_dict()), atol=0, rtol=0)


def test_power_iteration_reaches_nested_layers_and_spares_copies() -> None:
    inner = nn.Sequential(make("linear"), make("conv"))
    twin = copy.deepcopy(inner)
    before = [norm_of(layer).u.clone() for layer in inner]
    for layer in inner:
        nn.init.normal_(trained_weight(layer))
    power_iteration_(nn.Sequential(nn.Linear(3, 3), inner))
    for layer, old, copied in zip(inner, before, twin, strict=True):
        assert not torch.allclose(norm_of(layer).u, old)
        torch.testing.assert_close(norm_of(copied).u, old, atol=0, rtol=0)


def test_disabled_leaves_the_layer_alone() -> None:
    layer = nn.Linear(3, 4)
    assert spectral_norm(layer, enabled=False) is layer
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert trained_weight(layer) is layer.weight


def mixed_network() -> nn.ModuleList:
    """Two layers of one shape, others alone, and one that is not normalised; no vector has settled."""
    torch.manual_seed(3)
    layers = [spectral_norm(nn.Conv2d(4, 7, 3)) for _ in range(2)] + [make(name) for name in LAYERS]
    network = nn.ModuleList([*layers, nn.Linear(2, 2)]).double()
    for layer in layers:
        nn.init.normal_(trained_weight(layer))
    return network


def test_weights_normalised_together_are_those_normalised_alone() -> None:
    network = mixed_network()
    layers = list(network)[:-1]
    alone = [cast(Tensor, layer.weight) for layer in layers]
    upstream = [torch.randn_like(weight) for weight in alone]
    originals = [trained_weight(layer) for layer in layers]
    expected = torch.autograd.grad(alone, originals, upstream)
    with normalised_together(network):
        together = [cast(Tensor, layer.weight) for layer in layers]
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(together, originals, upstream), expected, rtol=1e-13, atol=1e-13)


def test_together_holds_for_as_long_as_entered_and_no_longer() -> None:
    network = mixed_network()
    layer = network[0]
    with normalised_together(network):
        first = cast(Tensor, layer.weight)
        assert layer.weight is first
    assert layer.weight is not first
    with pytest.raises(RuntimeError), normalised_together(network):
        network[2](torch.zeros(1))  # an error inside ends it as well
    assert all(norm.held is None for norm in network.modules() if isinstance(norm, SpectralNorm))
    with normalised_together(network, trained=False):
        assert not any(cast(Tensor, layer.weight).requires_grad for layer in list(network)[:-1])
        assert torch.is_grad_enabled()


def test_vectors_move_together_as_they_move_alone() -> None:
    network = mixed_network()
    twin = copy.deepcopy(network)
    for _ in range(3):
        power_iteration_(network)
        power_iteration_(twin, together=False)
    torch.testing.assert_close(dict(network.state_dict()), dict(twin.state_dict()), rtol=1e-14, atol=1e-14)


def test_autocast_lowers_neither_sigma_nor_the_iteration() -> None:
    network = mixed_network().float()
    for together in (True, False):
        twin, other = copy.deepcopy(network), copy.deepcopy(network)
        power_iteration_(twin, together=together)
        layers = list(other)[:-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            power_iteration_(other, together=together)
            alone = [cast(Tensor, layer.weight) for layer in layers]
            with normalised_together(other):
                weights = [cast(Tensor, layer.weight) for layer in layers]
            assert layers[0](torch.randn(1, 4, 5, 5)).dtype == torch.bfloat16
        expected = [cast(Tensor, layer.weight) for layer in list(twin)[:-1]]
        torch.testing.assert_close(dict(other.state_dict()), dict(twin.state_dict()), atol=0, rtol=0)
        torch.testing.assert_close(alone, expected, atol=0, rtol=0)
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-6)
