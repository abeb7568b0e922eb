"""Shared layers against formulas written out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.models.layers import ClassBatchNorm2d, ConditionalBatchNorm2d, LabelMap, SelfAttention, initialize_
from cifargan.models.spectral import spectral_norm, trained_weight


def standardise(x: Tensor, eps: float) -> Tensor:
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


def test_conditional_batch_norm_is_one_plus_linear() -> None:
    layer = ConditionalBatchNorm2d(4, 3, eps=0.3, spectral_norm=False)
    x, condition = torch.randn(5, 4, 6, 6) * 2 + 1, torch.randn(5, 3)
    gain = 1 + condition @ layer.gain.weight.T
    bias = condition @ layer.bias.weight.T
    expected = standardise(x, 0.3) * gain.view(5, 4, 1, 1) + bias.view(5, 4, 1, 1)
    torch.testing.assert_close(layer(x, condition), expected)
    torch.testing.assert_close(layer(x, torch.zeros(5, 3)), standardise(x, 0.3))
    assert [name for name, _ in layer.named_parameters()] == ["gain.weight", "bias.weight"]


def test_class_batch_norm_starts_plain_and_tells_classes_apart() -> None:
    layer = ClassBatchNorm2d(4, 3, eps=0.3)
    x, y = torch.randn(5, 4, 6, 6) * 2 + 1, torch.tensor([0, 2, 2, 1, 0])
    torch.testing.assert_close(layer(x, y), standardise(x, 0.3))
    with torch.no_grad():
        layer.gain.normal_()
        layer.bias.normal_()
    expected = torch.stack(
        [
            image * layer.gain[label].view(4, 1, 1) + layer.bias[label].view(4, 1, 1)
            for image, label in zip(standardise(x, 0.3), y.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(layer(x, y), expected)


def attend_by_hand(layer: SelfAttention, x: Tensor) -> Tensor:
    """One image and one query at a time, without any scale."""
    n, _, height, width = x.shape

    def project(conv: nn.Module, t: Tensor) -> Tensor:
        return torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], t)  # type: ignore[index]

    def pool(t: Tensor) -> Tensor:
        return t.reshape(n, -1, height // 2, 2, width // 2, 2).amax(dim=(3, 5))

    theta, phi, g = project(layer.theta, x), pool(project(layer.phi, x)), pool(project(layer.g, x))
    attended = torch.zeros(n, g.shape[1], height, width)
    for i in range(n):
        for row in range(height):
            for column in range(width):
                scores = torch.einsum("c,chw->hw", theta[i, :, row, column], phi[i])
                weights = scores.exp() / scores.exp().sum()
                attended[i, :, row, column] = torch.einsum("hw,chw->c", weights, g[i])
    return x + layer.gamma * project(layer.out, attended)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_is_the_unscaled_formula(memory_format: torch.memory_format) -> None:
    layer = SelfAttention(16, spectral_norm=True)
    nn.init.constant_(layer.gamma, 0.7)
    x = torch.randn(2, 16, 4, 6) * 3
    expected = attend_by_hand(layer, x)
    actual = layer.to(memory_format=memory_format)(x.to(memory_format=memory_format))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert actual.is_contiguous(memory_format=memory_format)


def test_attention_starts_as_the_identity_but_can_learn() -> None:
    layer = SelfAttention(16, spectral_norm=False)
    assert sum(p.numel() for p in layer.parameters()) == 16 * 2 + 16 * 2 + 16 * 8 + 8 * 16 + 1
    x = torch.randn(2, 16, 4, 4)
    y = layer(x)
    torch.testing.assert_close(y, x, atol=0, rtol=0)
    y.square().sum().backward()
    assert layer.gamma.grad is not None
    assert layer.gamma.grad.abs().item() > 1e-3


def test_attention_can_be_differentiated_twice() -> None:
    layer = SelfAttention(8, spectral_norm=True).double()
    nn.init.constant_(layer.gamma, 0.5)
    x = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("normalised", [False, True])
def test_label_map_is_the_last_channel(normalised: bool) -> None:
    layer = LabelMap(3, 5, 4, spectral_norm=normalised)
    x, y = torch.randn(2, 6, 4, 4), torch.tensor([2, 0])
    result = layer(x, y)
    assert result.shape == (2, 7, 4, 4)
    torch.testing.assert_close(result[:, :6], x, atol=0, rtol=0)
    expected = layer.embed.weight[y] @ layer.linear.weight.T + layer.linear.bias
    torch.testing.assert_close(result[:, 6].flatten(1), expected)
    if normalised:
        assert torch.linalg.matrix_norm(layer.linear.weight, 2).item() == pytest.approx(1.0, abs=0.05)
    with pytest.raises(UserError, match="needs labelled data"):
        LabelMap(0, 5, 4)


@pytest.mark.parametrize("normalised", [False, True])
def test_orthogonal_initialisation(normalised: bool) -> None:
    network = nn.Sequential(
        spectral_norm(nn.Conv2d(3, 8, 3), enabled=normalised),  # wide: 8 x 27
        spectral_norm(nn.ConvTranspose2d(3, 5, 2), enabled=normalised),  # wide: 5 x 12
        spectral_norm(nn.Embedding(4, 9), enabled=normalised),  # wide
        spectral_norm(nn.Linear(3, 8), enabled=normalised),  # tall
    )
    initialize_(network, "orthogonal")
    conv, transposed, embedding, linear = (trained_weight(layer).detach() for layer in network)
    torch.testing.assert_close(conv.flatten(1) @ conv.flatten(1).T, torch.eye(8))
    rows = transposed.permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(5))
    torch.testing.assert_close(embedding @ embedding.T, torch.eye(4))
    torch.testing.assert_close(linear.T @ linear, torch.eye(3))
    for layer in network:
        # All singular values are one, so sigma must be one too, unless it still belongs to the weights before.
        torch.testing.assert_close(layer.weight, trained_weight(layer), atol=1e-5, rtol=1e-5)
        bias = getattr(layer, "bias", torch.zeros(1))
        torch.testing.assert_close(bias, torch.zeros_like(bias))


def test_normal_initialisation() -> None:
    network = nn.Sequential(
        nn.Conv2d(16, 64, 3), nn.ConvTranspose2d(64, 16, 3), nn.Linear(100, 100), nn.Embedding(100, 100)
    )
    norm = nn.BatchNorm2d(10_000)
    initialize_(nn.Sequential(network, norm), "normal", std=0.05)
    for layer in network:
        # 9,000 draws or more: the standard error of the deviation is under 0.8 %.
        weight = trained_weight(layer)
        assert weight.std().item() == pytest.approx(0.05, rel=0.03)
        assert weight.mean().item() == pytest.approx(0.0, abs=0.002)
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.002)
    assert norm.weight.std().item() == pytest.approx(0.05, rel=0.03)
    assert norm.bias.abs().max().item() == 0
    biases = [value for key, value in network.state_dict().items() if key.endswith("bias")]
    assert [bias.abs().max().item() for bias in biases] == [0, 0, 0]


def test_xavier_initialisation_is_uniform_within_glorots_bound_and_makes_label_maps_visible() -> None:
    layer = nn.Conv2d(16, 64, 3)
    initialize_(layer, "xavier")
    bound = math.sqrt(6 / ((16 + 64) * 9))
    assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert layer.bias is not None
    assert layer.bias.abs().max().item() == 0
    label_map = LabelMap(200, 50, 32)
    initialize_(label_map, "xavier")
    maps = label_map(torch.zeros(200, 0, 32, 32), torch.arange(200))
    assert maps.std().item() == pytest.approx(math.sqrt(50 * 2 / (50 + 32 * 32)), rel=0.05)


def test_default_initialisation_touches_nothing() -> None:
    network = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.Embedding(3, 4))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    initialize_(network, "default")
    torch.testing.assert_close(dict(network.state_dict()), before, atol=0, rtol=0)


@pytest.mark.parametrize("scheme", ["orthogonal", "normal", "xavier"])
def test_initialisation_spares_what_is_no_layers_weight(scheme: str) -> None:
    attention, norm = SelfAttention(8, spectral_norm=True), ClassBatchNorm2d(8, 3, eps=1e-5)
    initialize_(nn.Sequential(attention, norm), scheme)  # type: ignore[arg-type]
    assert attention.gamma.item() == 0
    torch.testing.assert_close(norm.gain, torch.ones(3, 8), check_dtype=False)
    torch.testing.assert_close(norm.bias, torch.zeros(3, 8), check_dtype=False)


def test_layers_work_under_autocast() -> None:
    x, y, condition = torch.randn(4, 8, 4, 4), torch.tensor([0, 1, 2, 0]), torch.randn(4, 3)
    attention = SelfAttention(8, spectral_norm=True)
    nn.init.constant_(attention.gamma, 1.0)
    norm = ConditionalBatchNorm2d(8, 3, eps=1e-5, spectral_norm=True)
    label_map = LabelMap(3, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = attention(x), norm(x, condition), label_map(x, y)
        sum(half.float().square().mean() for half in halves).backward()
    for half, full in zip(halves, (attention(x), norm(x, condition), label_map(x, y)), strict=True):
        # bfloat16 keeps 8 bits: a relative error of 0.4 % for each rounding.
        assert F.mse_loss(half.float(), full).sqrt().item() < 0.02 * full.std().item()
