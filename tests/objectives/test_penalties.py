"""Penalties against hand-computed values, closed forms of simple critics, and a plain Python loop."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.models.biggan import BigGANDiscriminator
from cifargan.models.dcgan import DCGANDiscriminator
from cifargan.models.dense import DenseDiscriminator
from cifargan.models.heads import LinearHead, ProjectionHead
from cifargan.models.interface import Discriminator, DiscriminatorOutput
from cifargan.objectives.augment import DiffAugment
from cifargan.objectives.base import Augment, Batch, Critic, Judgement, Loss, Penalty
from cifargan.objectives.objective import Objective
from cifargan.objectives.penalties import (
    R1,
    R2,
    Consistency,
    GradientPenalty,
    LeCam,
    consistency_penalty,
    lecam_penalty,
)


class Quadratic(Discriminator):
    """D(x) = a <w, x> + b / 2 |x|^2, whose gradient is a w + b x."""

    def __init__(self, *, a: float, b: float) -> None:
        super().__init__()
        self.w = torch.linspace(-1.0, 1.0, 48).view(3, 4, 4)
        self.a, self.b = torch.nn.Parameter(torch.tensor(a)), torch.nn.Parameter(torch.tensor(b))

    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput((self.a * self.w * x + self.b / 2 * x.square()).sum(dim=(1, 2, 3)))


def judged(real: Tensor, fake: Tensor, step: int = 0, *views: Tensor) -> Judgement:
    """The input of a penalty that uses logits only."""
    nothing = Batch(torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64))
    return Judgement(
        critic=Critic(Quadratic(a=1.0, b=0.0), Augment()),
        real_batch=nothing,
        fake_batch=nothing,
        real=DiscriminatorOutput(real),
        fake=DiscriminatorOutput(fake),
        views=[DiscriminatorOutput(view) for view in views],
        step=torch.tensor(step),
    )


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(4, generator=generator) + 1.0, torch.randn(6, generator=generator) - 1.0


def test_penalty_crosses_the_anchors_and_pulls_each_kind_to_the_other_one() -> None:
    real = torch.tensor([3.0, -2.0], requires_grad=True)
    fake = torch.tensor([-4.0, 5.0], requires_grad=True)
    # Real against the fake anchor -1: relu gives 4, 0; real anchor 2 against fake: 6, 0. Uncrossed it would be 1 and 9.
    penalty = lecam_penalty(real, fake, torch.tensor(2.0), torch.tensor(-1.0))
    assert penalty.item() == pytest.approx(16.0 / 2 + 36.0 / 2)
    by_real, by_fake = torch.autograd.grad(penalty, (real, fake))
    assert by_real.tolist() == [4.0, 0.0]
    assert by_fake.tolist() == [-6.0, 0.0]


def test_lecam_equals_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    lecam = LeCam(weight=0.3, decay=0.8, start=3)
    real_anchor = fake_anchor = 0.0
    for step in range(8):
        real, fake = batch(generator)
        real.requires_grad_()
        penalty = lecam(judged(real, fake, step))

        decay = 0.8 if step >= 3 else 0.0
        real_anchor = decay * real_anchor + (1.0 - decay) * real.mean().item()
        fake_anchor = decay * fake_anchor + (1.0 - decay) * fake.mean().item()
        expected = 0.0
        if step >= 3:
            expected += 0.3 * sum(max(logit - fake_anchor, 0.0) ** 2 for logit in real.tolist()) / 4
            expected += 0.3 * sum(max(real_anchor - logit, 0.0) ** 2 for logit in fake.tolist()) / 6

        assert lecam.real_anchor.item() == pytest.approx(real_anchor, rel=1e-5)
        assert lecam.fake_anchor.item() == pytest.approx(fake_anchor, rel=1e-5)
        assert penalty.item() == pytest.approx(expected, rel=1e-5)
        (by_real,) = torch.autograd.grad(penalty, real)
        slope = 0.3 * 2 / 4 if step >= 3 else 0.0
        assert by_real.tolist() == pytest.approx([slope * max(logit - fake_anchor, 0.0) for logit in real.tolist()])


def test_anchors_move_in_training_only() -> None:
    lecam = LeCam(start=0)
    real, fake = batch(torch.Generator().manual_seed(1))
    with torch.no_grad():
        lecam(judged(real, fake, 5))
    lecam.eval()
    lecam(judged(real, fake, 5))
    assert lecam.real_anchor.item() == lecam.fake_anchor.item() == 0.0
    lecam.train()
    lecam(judged(real, fake, 5))
    assert lecam.real_anchor.item() == pytest.approx(0.01 * real.mean().item(), rel=1e-5)
    assert lecam.fake_anchor.item() == pytest.approx(0.01 * fake.mean().item(), rel=1e-5)


def test_anchors_are_saved_in_the_checkpoint() -> None:
    lecam, other = LeCam(start=10), LeCam(start=10)
    real, fake = batch(torch.Generator().manual_seed(2))
    lecam(judged(real, fake, 0))
    assert set(lecam.state_dict()) == {"real_anchor", "fake_anchor"}
    other.load_state_dict(lecam.state_dict())
    assert other.real_anchor.item() == pytest.approx(real.mean().item())
    torch.testing.assert_close(lecam(judged(real, fake, 11)), other(judged(real, fake, 11)))


def test_half_precision_logits_are_judged_in_float32() -> None:
    real, fake = (logits.to(torch.bfloat16) for logits in batch(torch.Generator().manual_seed(3)))
    exact = LeCam(start=0)(judged(real.float(), fake.float()))
    lecam = LeCam(start=0)
    value = lecam(judged(real, fake, 0))
    assert value.dtype == lecam.real_anchor.dtype == torch.float32
    assert torch.equal(value, exact)


def test_consistency_is_the_mean_squared_difference() -> None:
    real, view = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    assert consistency_penalty(real, view).item() == pytest.approx((1.0 + 9.0) / 3)
    term = Consistency(weight=10.0)
    assert term(judged(real, torch.zeros(3), 0, view)).item() == pytest.approx(100.0 / 3)


def test_consistency_views_are_mirrored_half_the_time_and_moved_within_reach() -> None:
    torch.manual_seed(0)
    # One bright pixel, off centre, so that it tells where its image went and whether it was mirrored.
    x = torch.zeros(4000, 3, 16, 16)
    x[:, :, 6, 5] = 1.0
    (make,) = Consistency(reach=3).views()
    view = make(x)
    assert view.shape == x.shape
    places = view[:, 0].flatten(1).argmax(1)
    rows, columns = places // 16, places % 16
    assert (view.flatten(1).sum(1) == 3.0).all()  # none lost one: the pixel is far enough from the border
    assert set((rows - 6).tolist()) == set(range(-3, 4))
    # Mirrored it lies in column 10: the two neighbourhoods 2..8 and 7..13 overlap in 7 and 8.
    assert set(columns.tolist()) == set(range(2, 14))
    assert (columns > 8).float().mean().item() == pytest.approx(0.5 * 5 / 7, abs=0.04)
    assert (columns < 7).float().mean().item() == pytest.approx(0.5 * 5 / 7, abs=0.04)


# Penalties by gradient


def losses(discriminator: Discriminator, penalty: Penalty, x: Tensor, x_fake: Tensor, **settings: Augment) -> Tensor:
    """The term of one penalty, as the objective takes it."""
    y = torch.zeros(len(x), dtype=torch.int64)
    critic = Critic(discriminator, settings.get("augment", Augment()))
    objective = Objective(Flat(), {"it": penalty})
    terms, _ = objective.discriminator(critic, Batch(x, y), Batch(x_fake, y), torch.tensor(0), frozenset({"it"}))
    return terms["loss/it"]


class Flat(Loss):
    """No adversarial loss."""

    def discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        return {"real": 0.0 * real.sum(), "fake": 0.0 * fake.sum()}

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return 0.0 * fake.sum()


def images(n: int, seed: int, size: int = 4) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_r1_and_r2_of_a_quadratic_critic_are_those_of_the_closed_form() -> None:
    critic = Quadratic(a=0.7, b=-0.4)
    x, x_fake = images(5, 0), images(3, 1)
    for penalty, seen in ((R1(gamma=0.5), x), (R2(gamma=0.5), x_fake)):
        gradient = 0.7 * critic.w - 0.4 * seen
        value = losses(critic, penalty, x, x_fake)
        torch.testing.assert_close(value, 0.25 * gradient.square().sum(dim=(1, 2, 3)).mean())
        by_a, by_b = torch.autograd.grad(value, [critic.a, critic.b])
        torch.testing.assert_close(by_a, 0.5 * (gradient * critic.w).sum(dim=(1, 2, 3)).mean())
        torch.testing.assert_close(by_b, 0.5 * (gradient * seen).sum(dim=(1, 2, 3)).mean())


def test_gradient_penalty_of_a_linear_critic_is_that_of_the_closed_form() -> None:
    critic = Quadratic(a=0.7, b=0.0)
    length = float(critic.w.norm())
    value = losses(critic, GradientPenalty(weight=3.0), images(4, 0), images(4, 1))
    assert value.item() == pytest.approx(3.0 * (0.7 * length - 1.0) ** 2, rel=1e-5)
    (by_a,) = torch.autograd.grad(value, [critic.a])
    assert by_a.item() == pytest.approx(6.0 * (0.7 * length - 1.0) * length, rel=1e-5)


def test_gradient_penalty_is_taken_between_the_two_kinds() -> None:
    critic = Quadratic(a=0.0, b=1.0)  # its gradient is the image, so its norm says where the image was
    real, fake = torch.full((64, 3, 4, 4), 0.5), torch.zeros(64, 3, 4, 4)
    torch.manual_seed(0)
    share = torch.rand(64, 1, 1, 1)
    norm = (share * 0.5).flatten() * math.sqrt(48)
    torch.manual_seed(0)
    value = losses(critic, GradientPenalty(weight=1.0), real, fake)
    assert value.item() == pytest.approx((norm - 1.0).square().mean().item(), rel=1e-5)


def test_a_critic_without_slope_has_a_finite_gradient_penalty() -> None:
    critic = Quadratic(a=0.0, b=0.0)
    value = losses(critic, GradientPenalty(weight=2.0), images(4, 0), images(4, 1))
    assert value.item() == pytest.approx(2.0)
    assert all(g.isfinite() for g in torch.autograd.grad(value, [critic.a, critic.b]))


class Doubling(Augment):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


def test_the_gradient_is_that_at_the_images_before_augmentation() -> None:
    critic, x = Quadratic(a=1.0, b=0.0), images(4, 0)
    plain = losses(critic, R1(gamma=1.0), x, x)
    assert losses(critic, R1(gamma=1.0), x, x, augment=Doubling()).item() == pytest.approx(4.0 * plain.item(), rel=1e-5)


def test_an_interval_weighs_the_penalty_and_skips_the_other_iterations() -> None:
    objective = Objective(Flat(), {"r1": R1(gamma=1.0, interval=4), "lecam": LeCam()})
    assert [sorted(objective.due(step)) for step in range(5)] == [["lecam", "r1"], *[["lecam"]] * 3, ["lecam", "r1"]]
    critic, x = Quadratic(a=1.0, b=0.5), images(4, 0)
    every = losses(critic, R1(gamma=1.0), x, x).item()
    assert losses(critic, R1(gamma=1.0, interval=4), x, x).item() == pytest.approx(4.0 * every)
    batch_of, step = Batch(x, torch.zeros(4, dtype=torch.int64)), torch.tensor(1)
    seen = Critic(critic, Augment())
    due, not_due = (objective.discriminator(seen, batch_of, batch_of, step, objective.due(number)) for number in (0, 1))
    assert due[0].keys() == not_due[0].keys()
    assert not_due[0]["loss/r1"].item() == 0.0 < due[0]["loss/r1"].item()


DISCRIMINATORS = [
    DCGANDiscriminator(num_classes=2, image_size=16, head=ProjectionHead, base_channels=8, batch_norm=False),
    DCGANDiscriminator(
        num_classes=2,
        image_size=16,
        head=LinearHead,
        base_channels=8,
        batch_norm=False,
        label_map=True,
        spectral_norm=True,
    ),
    DenseDiscriminator(num_classes=2, image_size=16, head=LinearHead, channels=[8, 8], attention=[8], dropout=0.0),
    BigGANDiscriminator(num_classes=2, image_size=16, head=ProjectionHead, channels=8, attention=[8]),
]


@pytest.mark.parametrize("discriminator", DISCRIMINATORS, ids=lambda network: type(network).__name__)
def test_every_discriminator_and_augmentation_can_be_differentiated_twice(discriminator: Discriminator) -> None:
    discriminator = discriminator.double()
    augment, y = DiffAugment(), torch.zeros(1, dtype=torch.int64)

    def logit(x: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same draw each time
        logits: Tensor = discriminator(augment(x), y).logits
        return logits

    x = images(1, 3, size=16).double().requires_grad_()
    assert torch.autograd.gradcheck(logit, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(logit, x, fast_mode=True)


@pytest.mark.parametrize(
    ("penalty", "setting", "value"),
    [
        *((LeCam, "weight", value) for value in (-0.1, math.nan)),
        *((LeCam, "decay", value) for value in (1.0, -0.1)),
        (LeCam, "start", -1),
        *((Consistency, "weight", value) for value in (-1.0, math.nan)),
        (Consistency, "reach", -1),
        *((penalty, "interval", 0) for penalty in (R1, R2, GradientPenalty)),
        *((penalty, "gamma", -1.0) for penalty in (R1, R2)),
        (GradientPenalty, "weight", -1.0),
    ],
)
def test_bad_settings_are_the_users_error(penalty: Any, setting: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^regularizer\.\w+\.{setting}={value}") as error:
        penalty(**{setting: value})
    assert "\n" not in str(error.value)
