"""Class terms: AC-GAN's against torch, D2D-CE against loops over the printed formula."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cifargan.errors import UserError
from cifargan.models.interface import DiscriminatorOutput
from cifargan.objectives.classification import D2DCE, CrossEntropy, NoClassification, d2d_cross_entropy

LOGITS = torch.zeros(6)
LABELS = torch.tensor([0, 2, 2, 1, 0, 2])


def sphere(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 3, generator=generator), dim=1).to(dtype)


def d2d_by_loops(f: list[list[float]], v: list[list[float]], y: list[int], margin: float, temperature: float) -> float:
    def dot(a: list[float], b: list[float]) -> float:
        return sum(p * q for p, q in zip(a, b, strict=True))

    total = 0.0
    for i, own in enumerate(y):
        positive = math.exp(min(dot(f[i], v[own]) - margin, 0.0) / temperature)
        negative = 0.0
        for j, other in enumerate(y):
            if other != own:
                negative += math.exp(max(dot(f[i], f[j]) - (1.0 - margin), 0.0) / temperature)
        total -= math.log(positive / (positive + negative))
    return total / len(y)


def test_cross_entropy_equals_torchs_times_each_weight() -> None:
    class_logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    loss = CrossEntropy(weight=2.0, fake_weight=0.25, label_smoothing=0.3)
    output = DiscriminatorOutput(logits=LOGITS, class_logits=class_logits)
    # The target is 0.7 at the label plus 0.1 everywhere.
    log_p = class_logits.log_softmax(dim=1)
    expected = -(0.7 * log_p[torch.arange(6), LABELS] + 0.1 * log_p.sum(dim=1)).mean()
    torch.testing.assert_close(loss.discriminator(output, LABELS), 2.0 * expected)
    torch.testing.assert_close(loss.generator(output, LABELS), 0.25 * expected)


@pytest.mark.parametrize(("margin", "temperature"), [(0.98, 0.5), (0.7, 0.2), (0.5, 1.0), (0.0, 0.5)])
def test_d2d_cross_entropy_equals_the_formula_and_is_weighted_for_each_network(
    margin: float, temperature: float
) -> None:
    f, v = sphere(6, seed=1), sphere(3, seed=2)
    value = d2d_cross_entropy(f, v, LABELS, margin=margin, temperature=temperature)
    expected = d2d_by_loops(f.tolist(), v.tolist(), LABELS.tolist(), margin, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(d2d_cross_entropy(f, v, LABELS, margin=margin, temperature=temperature), value)
    output = DiscriminatorOutput(logits=LOGITS, embedding=f, class_proxies=v)
    default = (margin, temperature) == (0.98, 0.5)
    settings = {} if default else {"margin": margin, "temperature": temperature}
    loss = D2DCE(weight=0.4, fake_weight=3.0, **settings)
    assert loss.discriminator(output, LABELS).item() == pytest.approx(0.4 * expected, rel=1e-5)
    assert loss.generator(output, LABELS).item() == pytest.approx(3.0 * expected, rel=1e-5)


def test_d2d_margins_give_easy_samples_no_gradient() -> None:
    """Two samples on their own proxies at right angles: both clamps hold, so the loss is log 2 without a gradient."""
    f = torch.eye(2, requires_grad=True)
    value = d2d_cross_entropy(f, torch.eye(2), torch.tensor([0, 1]), margin=0.98, temperature=0.5)
    assert value.item() == pytest.approx(math.log(2.0))
    (gradient,) = torch.autograd.grad(value, f)
    assert torch.equal(gradient, torch.zeros(2, 2))


def test_d2d_gradients_are_finite_and_reach_embedding_and_proxies() -> None:
    f, v = sphere(6, seed=5).requires_grad_(), sphere(3, seed=6).requires_grad_()
    value = d2d_cross_entropy(f, v, LABELS, margin=0.98, temperature=0.5)
    by_f, by_v = torch.autograd.grad(value, (f, v))
    step = 1e-3
    for point, gradient in ((f, by_f), (v, by_v)):
        direction = sphere(len(point), seed=7)
        ends = []
        for sign in (1.0, -1.0):
            moved = point.detach() + sign * step * direction
            pair = (moved, v.detach()) if point is f else (f.detach(), moved)
            ends.append(d2d_by_loops(pair[0].tolist(), pair[1].tolist(), LABELS.tolist(), 0.98, 0.5))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope) > 1e-3
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-2)


def test_d2d_without_negatives_is_zero_and_differentiable() -> None:
    f = sphere(4, seed=8).requires_grad_()
    value = d2d_cross_entropy(f, sphere(3, seed=9), torch.ones(4, dtype=torch.int64), margin=0.98, temperature=0.5)
    assert value.item() == 0.0
    (gradient,) = torch.autograd.grad(value, f)
    assert torch.equal(gradient, torch.zeros(4, 3))


def test_half_precision_outputs_are_judged_in_float32() -> None:
    half = torch.bfloat16
    output = DiscriminatorOutput(LOGITS, sphere(6, seed=12, dtype=half), sphere(6, 13, half), sphere(3, 14, half))
    exact = DiscriminatorOutput(*(tensor.float() for tensor in output if tensor is not None))
    for loss in (CrossEntropy(), D2DCE()):
        value = loss.discriminator(output, LABELS)
        assert (value.dtype, value.shape) == (torch.float32, ())
        assert torch.equal(value, loss.discriminator(exact, LABELS))


def test_no_classification_adds_a_float32_zero() -> None:
    output = DiscriminatorOutput(logits=LOGITS.to(torch.bfloat16))
    for value in (NoClassification().discriminator(output, LABELS), NoClassification().generator(output, LABELS)):
        assert (value.shape, value.dtype, value.item()) == ((), torch.float32, 0.0)


def test_terms_name_what_they_need_of_a_head() -> None:
    assert CrossEntropy.needs == ("class_logits",)
    assert D2DCE.needs == ("embedding", "class_proxies")
    with pytest.raises(ValueError, match="class logits"):
        CrossEntropy().discriminator(DiscriminatorOutput(logits=LOGITS), LABELS)
    with pytest.raises(ValueError, match="embedding"):
        D2DCE().generator(DiscriminatorOutput(logits=LOGITS), LABELS)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (CrossEntropy, {"weight": -1.0}, r"classification\.weight=-1"),
        (D2DCE, {"fake_weight": math.nan}, "fake_weight=nan"),
        (CrossEntropy, {"label_smoothing": 1.0}, "label_smoothing=1"),
        (D2DCE, {"margin": 1.5}, r"margin=1\.5"),
        (D2DCE, {"temperature": 0.0}, "temperature=0"),
    ],
)
def test_bad_settings_are_the_users_error(make: Any, settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**settings)
