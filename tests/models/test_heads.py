"""Heads against their formulas."""

from typing import Any

import pytest
import torch
from torch import nn

from cifargan.errors import UserError
from cifargan.models.heads import AuxiliaryHead, EmbeddingHead, LinearHead, ProjectionHead
from cifargan.models.interface import HeadFactory
from cifargan.models.spectral import power_iteration_
from cifargan.objectives.losses import clippable_parameters

F, K = 6, 4
HEADS: list[HeadFactory] = [LinearHead, ProjectionHead, AuxiliaryHead, EmbeddingHead]
CONDITIONAL = HEADS[1:]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, F), torch.tensor([2, 0, 3])


@pytest.mark.parametrize("normalised", [False, True])
def test_logits_of_every_head(normalised: bool) -> None:
    settings: dict[str, Any] = {"in_features": F, "num_classes": K, "spectral_norm": normalised}
    h, y = batch()
    for head in (LinearHead(**{**settings, "num_classes": 0}), AuxiliaryHead(**settings), EmbeddingHead(**settings)):
        expected = (h * head.linear.weight).sum(1) + head.linear.bias
        assert expected.shape == (3,)
        torch.testing.assert_close(head(h, y).logits, expected)
    projection = ProjectionHead(**settings)
    rows = [
        h[i] @ projection.linear.weight[0] + projection.linear.bias[0] + h[i] @ projection.embed.weight[label]
        for i, label in enumerate(y.tolist())
    ]
    torch.testing.assert_close(projection(h, y).logits, torch.stack(rows))
    assert LinearHead(**settings)(h, y)[1:] == projection(h, y)[1:] == (None, None, None)


@pytest.mark.parametrize("normalised", [False, True])
def test_auxiliary_and_embedding(normalised: bool) -> None:
    settings: dict[str, Any] = {"in_features": F, "num_classes": K, "spectral_norm": normalised}
    h, y = batch()
    auxiliary = AuxiliaryHead(**settings)
    output = auxiliary(h, y)
    torch.testing.assert_close(output.class_logits, h @ auxiliary.classifier.weight.T + auxiliary.classifier.bias)
    assert output[2:] == (None, None)
    head = EmbeddingHead(**settings, embedding_dim=5)
    _, class_logits, embedding, proxies = head(h, y)
    assert class_logits is not None
    assert embedding is not None
    assert proxies is not None
    raw = h @ head.project.weight.T + head.project.bias
    torch.testing.assert_close(embedding, raw / raw.norm(dim=1, keepdim=True))
    torch.testing.assert_close(proxies.norm(dim=1), torch.ones(K))
    torch.testing.assert_close(proxies * head.proxies.weight.norm(dim=1, keepdim=True), head.proxies.weight)
    expected = [[torch.cosine_similarity(point, proxy, dim=0) for proxy in head.proxies.weight] for point in raw]
    torch.testing.assert_close(class_logits, torch.stack([torch.stack(row) for row in expected]))


def test_spectral_norm_covers_linear_layers_and_the_projections_embedding() -> None:
    for make in HEADS:
        head = make(in_features=F, num_classes=K, spectral_norm=True)
        for _ in range(200):
            power_iteration_(head)
        names = {name for name, module in head.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
        for name in names - {"proxies"}:
            weight = head.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1.0, abs=1e-3), (make, name)


@pytest.mark.parametrize("make", [LinearHead, ProjectionHead])
def test_bias_can_be_left_out(make: type[LinearHead] | type[ProjectionHead]) -> None:
    head = make(in_features=F, num_classes=K, spectral_norm=False, bias=False)
    torch.testing.assert_close(head(torch.zeros(3, F), batch()[1]).logits, torch.zeros(3))


@pytest.mark.parametrize("make", HEADS)
def test_autocast_does_not_round_what_a_head_computes(make: HeadFactory) -> None:
    head = make(in_features=F, num_classes=K, spectral_norm=True)
    h, y = batch()
    h = h.bfloat16()
    full = head(h.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = head(h, y)
    for lowered, exact in zip(half, full, strict=True):
        torch.testing.assert_close(lowered, exact, atol=0, rtol=0)


@pytest.mark.parametrize("make", CONDITIONAL)
def test_conditional_heads_need_classes(make: HeadFactory) -> None:
    with pytest.raises(UserError, match="needs labelled data"):
        make(in_features=F, num_classes=0, spectral_norm=False)


@pytest.mark.parametrize(
    ("make", "spared"),
    [(LinearHead, ()), (ProjectionHead, ()), (AuxiliaryHead, ("classifier",)), (EmbeddingHead, ("project", "proxies"))],
)
@pytest.mark.parametrize("normalised", [False, True])
def test_weight_clipping_bounds_realness_alone(make: HeadFactory, spared: tuple[str, ...], normalised: bool) -> None:
    head = make(in_features=6, num_classes=3, spectral_norm=normalised)
    bounded = {id(parameter) for parameter in clippable_parameters(head)}
    names = {name.split(".")[0] for name, parameter in head.named_parameters() if id(parameter) not in bounded}
    assert names == set(spared)
    assert bounded
