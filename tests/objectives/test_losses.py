"""Adversarial losses against torch's own cross-entropy, closed forms and hand-written gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from cifargan.errors import UserError
from cifargan.models.layers import LabelMap
from cifargan.objectives.base import Loss
from cifargan.objectives.losses import BCELoss, HingeLoss, RelativisticLoss, WassersteinGPLoss, WassersteinLoss

LOSSES = [
    BCELoss(label_smoothing=0.1),
    HingeLoss(label_smoothing=0.1),
    WassersteinLoss(),
    WassersteinGPLoss(),
    RelativisticLoss(),
]


def logits(seed: int, n: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3.0 * torch.randn(n, generator=generator)).requires_grad_()


def total(loss: Loss, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises."""
    return torch.stack([*loss.discriminator(real, fake).values()]).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_bce_equals_torchs_with_one_sided_targets(smoothing: float) -> None:
    real, fake = logits(0), logits(1, n=5)
    loss = BCELoss(label_smoothing=smoothing)
    torch.testing.assert_close(
        total(loss, real, fake),
        F.binary_cross_entropy_with_logits(real, torch.full_like(real, 1.0 - smoothing))
        + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)),
    )
    torch.testing.assert_close(loss.generator(fake), F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake)))


def test_bce_gradients_are_sigmoid_minus_target() -> None:
    real, fake = logits(2), logits(3, n=5)
    loss = BCELoss(label_smoothing=0.1)
    by_real, by_fake = torch.autograd.grad(total(loss, real, fake), (real, fake))
    torch.testing.assert_close(by_real, (real.sigmoid() - 0.9) / 7)
    torch.testing.assert_close(by_fake, fake.sigmoid() / 5)
    # Non-saturating: the gradient nears -1, not 0, where the discriminator is sure of a fake.
    (by_fake,) = torch.autograd.grad(loss.generator(fake), fake)
    torch.testing.assert_close(by_fake, (fake.sigmoid() - 1.0) / 5)


def test_bce_stays_finite_and_exact_far_out() -> None:
    far = torch.tensor([-200.0, 200.0])
    loss = BCELoss(label_smoothing=0.1)
    # Real: 0.9 * 200 and 0.1 * 200; fake: 0 and 200.
    assert total(loss, far, far).item() == pytest.approx((180.0 + 20.0) / 2 + (0.0 + 200.0) / 2)
    assert loss.generator(far).item() == pytest.approx(100.0)


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([-1.0, 0.5, 0.95, 2.0]), torch.tensor([-3.0, 0.5])
    # Real, margin 1: 2, 0.5, 0.05, 0; fake: 0, 1.5.
    assert total(HingeLoss(), real, fake).item() == pytest.approx(2.55 / 4 + 1.5 / 2)
    # Real, margin 0.8: 1.8, 0.3, 0, 0; the fakes' margin stays.
    assert total(HingeLoss(label_smoothing=0.2), real, fake).item() == pytest.approx(2.1 / 4 + 1.5 / 2)
    assert HingeLoss(label_smoothing=0.2).generator(fake).item() == pytest.approx(1.25)


def test_hinge_gradient_vanishes_beyond_the_margins() -> None:
    real, fake = torch.tensor([0.85, 0.95], requires_grad=True), torch.tensor([-1.1, -0.9], requires_grad=True)
    by_real, by_fake = torch.autograd.grad(total(HingeLoss(label_smoothing=0.1), real, fake), (real, fake))
    assert by_real.tolist() == [-0.5, 0.0]
    assert by_fake.tolist() == [0.0, 0.5]


def test_wasserstein_by_hand() -> None:
    real, fake = torch.tensor([4.0, -1.0]), torch.tensor([1.0, 2.0, 6.0])
    assert total(WassersteinLoss(), real, fake).item() == pytest.approx(3.0 - 1.5)
    assert WassersteinLoss().generator(fake).item() == pytest.approx(-3.0)


def test_relativistic_by_hand() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.0, 3.0])
    # softplus of -(2), -(-4) for D and of 2, -4 for G.
    expected = (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(4.0))) / 2
    assert total(RelativisticLoss(), real, fake).item() == pytest.approx(expected)
    expected = (math.log1p(math.exp(2.0)) + math.log1p(math.exp(-4.0))) / 2
    assert RelativisticLoss().generator(fake, real).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="real"):
        RelativisticLoss().generator(fake)


def test_what_a_loss_cannot_do_without_comes_with_it() -> None:
    assert {name: type(loss).__name__ for name, loss in WassersteinGPLoss().penalties().items()} == {
        "gradient_penalty": "GradientPenalty"
    }
    assert RelativisticLoss(gamma=0.1, interval=4).penalties().keys() == {"r1", "r2"}
    loss = RelativisticLoss(gamma=0.1, interval=4)
    assert {(penalty.gamma, penalty.interval) for penalty in (loss.r1, loss.r2)} == {(0.1, 4)}
    assert RelativisticLoss(gamma=0.0).penalties() == HingeLoss().penalties() == {}


def test_health_says_how_the_discriminator_fares_in_the_terms_of_its_loss() -> None:
    real, fake = torch.tensor([3.0, 1.0, -2.0, 2.0]), torch.tensor([-1.0, 2.0, -4.0, -1.0])
    assert {k: v.item() for k, v in HingeLoss().health(real, fake).items()} == {
        "accuracy/real": 0.75,
        "accuracy/fake": 0.75,
    }
    assert {k: v.item() for k, v in WassersteinLoss().health(real, fake).items()} == {"distance/wasserstein": 2.0}
    assert {k: v.item() for k, v in RelativisticLoss().health(real, fake).items()} == {"accuracy/pairs": 0.75}
    assert HingeLoss().discriminator_has_won({"accuracy/real": 1.0, "accuracy/fake": 1.0})
    assert not HingeLoss().discriminator_has_won({"accuracy/real": 1.0, "accuracy/fake": 0.9})
    assert not WassersteinLoss().discriminator_has_won({"distance/wasserstein": 1e9})
    assert RelativisticLoss().discriminator_has_won({"accuracy/pairs": 1.0})


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_half_precision_logits_are_judged_in_float32(loss: Loss) -> None:
    real, fake = logits(4).to(torch.bfloat16), logits(5).to(torch.bfloat16)
    halves = [*loss.discriminator(real, fake).values()]
    for value, exact in [
        *zip(halves, loss.discriminator(real.float(), fake.float()).values(), strict=True),
        (loss.generator(fake, real), loss.generator(fake.float(), real.float())),
    ]:
        assert value.dtype == torch.float32
        assert value.shape == ()
        assert torch.equal(value, exact)


class Critic(nn.Module):
    """Every kind of parameter that clipping has to tell apart, each out of bounds on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True))
        self.norm = nn.LayerNorm(4)
        self.linear = spectral_norm(nn.Linear(4, 4))
        self.embed = nn.Embedding(10, 4)
        self.gamma = nn.Parameter(torch.zeros(2))
        self.label_map = LabelMap(10, 5, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-2.0, 2.0, parameter.numel()).view_as(parameter))


def test_clipping_spares_norm_layers_and_what_is_no_critic() -> None:
    critic = Critic()
    before = {name: parameter.clone() for name, parameter in critic.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in critic.named_buffers()}
    WassersteinLoss(clip=0.25).after_update(critic)
    clipped = {
        "conv.weight",
        "conv.bias",
        "linear.bias",
        "linear.parametrizations.weight.original",
        "embed.weight",
        "gamma",
    }
    assert clipped < before.keys()
    norms = ["body.0", "body.1", "body.2", "norm"]
    label_map = {"label_map.embed.weight", "label_map.linear.weight", "label_map.linear.bias"}
    assert before.keys() - clipped == label_map | {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}
    for name, parameter in critic.named_parameters():
        expected = before[name].clamp(-0.25, 0.25) if name in clipped else before[name]
        assert torch.equal(parameter, expected), name
        assert parameter.requires_grad
    for name, buffer in critic.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_clipping_leaves_frozen_weights_unchanged_and_other_losses_leave_all() -> None:
    """A critic that starts from another run may keep its first blocks, whose weights need not be within the bound."""
    critic = Critic()
    critic.conv.requires_grad_(False)
    before = [parameter.clone() for parameter in critic.parameters()]
    for loss in (BCELoss(), HingeLoss()):
        loss.after_update(critic)
        assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), before, strict=True))
    weight = critic.conv.weight.clone()
    WassersteinLoss(clip=0.25).after_update(critic)
    assert torch.equal(critic.conv.weight, weight)
    assert float(critic.embed.weight.detach().abs().max()) == 0.25


@pytest.mark.parametrize(
    ("make", "setting", "value"),
    [
        *((make, "label_smoothing", value) for make in (BCELoss, HingeLoss) for value in (-0.1, 1.0, math.nan)),
        *((WassersteinLoss, "clip", value) for value in (0.0, -0.01, math.inf, math.nan)),
    ],
)
def test_bad_settings_are_the_users_error(make: Any, setting: str, value: float) -> None:
    message = r"label_smoothing=.*\[0, 1\)" if setting == "label_smoothing" else "clip="
    with pytest.raises(UserError, match=message):
        make(**{setting: value})


@pytest.mark.parametrize(
    ("loss", "setting", "value"),
    [
        (RelativisticLoss, "gamma", -1.0),
        (RelativisticLoss, "interval", 0),
        (WassersteinGPLoss, "weight", -1.0),
        (WassersteinGPLoss, "interval", 0),
    ],
)
def test_bad_settings_of_a_loss_for_its_penalties_are_named_as_its_own(loss: Any, setting: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^loss\.{setting}={value}"):
        loss(**{setting: value})
