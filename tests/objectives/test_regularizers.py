"""Regularisers: crossed anchors by hand, and the running means against a plain Python loop."""

import math

import pytest
import torch
from torch import Tensor

from cifargan.errors import UserError
from cifargan.objectives.regularizers import (
    Consistency,
    LeCam,
    LeCamConsistency,
    NoRegularizer,
    consistency_penalty,
    lecam_penalty,
)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(4, generator=generator) + 1.0, torch.randn(6, generator=generator) - 1.0


def test_penalty_crosses_the_anchors() -> None:
    real, fake = torch.tensor([3.0, -2.0]), torch.tensor([-4.0, 5.0])
    # Real against the fake anchor -1: relu gives 4, 0; real anchor 2 against fake: 6, 0. Uncrossed it would be 1 and 9.
    penalty = lecam_penalty(real, fake, torch.tensor(2.0), torch.tensor(-1.0))
    assert penalty.item() == pytest.approx(16.0 / 2 + 36.0 / 2)


def test_penalty_gradient_pulls_each_kind_to_the_other_anchor() -> None:
    real = torch.tensor([3.0, -2.0], requires_grad=True)
    fake = torch.tensor([-4.0, 5.0], requires_grad=True)
    penalty = lecam_penalty(real, fake, torch.tensor(2.0), torch.tensor(-1.0))
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
        penalty = lecam(real, fake, torch.tensor(step))

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
        lecam(real, fake, torch.tensor(5))
    lecam.eval()
    lecam(real, fake, torch.tensor(5))
    assert lecam.real_anchor.item() == lecam.fake_anchor.item() == 0.0
    lecam.train()
    lecam(real, fake, torch.tensor(5))
    assert lecam.real_anchor.item() == pytest.approx(0.01 * real.mean().item(), rel=1e-5)
    assert lecam.fake_anchor.item() == pytest.approx(0.01 * fake.mean().item(), rel=1e-5)


def test_anchors_travel_in_the_checkpoint() -> None:
    lecam, other = LeCam(start=10), LeCam(start=10)
    real, fake = batch(torch.Generator().manual_seed(2))
    lecam(real, fake, torch.tensor(0))
    assert set(lecam.state_dict()) == {"real_anchor", "fake_anchor"}
    other.load_state_dict(lecam.state_dict())
    assert other.real_anchor.item() == pytest.approx(real.mean().item())
    torch.testing.assert_close(lecam(real, fake, torch.tensor(11)), other(real, fake, torch.tensor(11)))


def test_half_precision_logits_are_judged_in_float32() -> None:
    real, fake = (logits.to(torch.bfloat16) for logits in batch(torch.Generator().manual_seed(3)))
    exact = LeCam(start=0)(real.float(), fake.float(), torch.tensor(0))
    lecam = LeCam(start=0)
    value = lecam(real, fake, torch.tensor(0))
    assert value.dtype == lecam.real_anchor.dtype == torch.float32
    assert torch.equal(value, exact)


def test_no_regularizer_adds_a_float32_zero() -> None:
    nothing = NoRegularizer()
    value = nothing(torch.ones(3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16), torch.tensor(0))
    assert (value.shape, value.dtype, value.item()) == ((), torch.float32, 0.0)
    assert not nothing.state_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", -0.1), ("weight", math.nan), ("decay", 1.0), ("decay", -0.1), ("start", -1)],
)
def test_bad_settings_are_the_users_error(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} of LeCam is {value}"):
        LeCam(**{name: value})  # type: ignore[arg-type]


def test_consistency_is_the_mean_squared_difference() -> None:
    real, view = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    assert consistency_penalty(real, view).item() == pytest.approx((1.0 + 9.0) / 3)
    term = Consistency(weight=10.0)
    assert term(real, torch.zeros(3), torch.tensor(0), view).item() == pytest.approx(100.0 / 3)


def test_consistency_views_are_mirrored_half_the_time_and_moved_within_reach() -> None:
    torch.manual_seed(0)
    # One bright pixel, off centre, so that it tells where its image went and whether it was mirrored.
    x = torch.zeros(4000, 3, 16, 16)
    x[:, :, 6, 5] = 1.0
    (view,) = Consistency(reach=3).views(x)
    assert view.shape == x.shape
    places = view[:, 0].flatten(1).argmax(1)
    rows, columns = places // 16, places % 16
    assert (view.flatten(1).sum(1) == 3.0).all()  # none lost one: the pixel is far enough from the border
    assert set((rows - 6).tolist()) == set(range(-3, 4))
    # Mirrored it lies in column 10: the two neighbourhoods 2..8 and 7..13 overlap in 7 and 8.
    assert set(columns.tolist()) == set(range(2, 14))
    assert (columns > 8).float().mean().item() == pytest.approx(0.5 * 5 / 7, abs=0.04)
    assert (columns < 7).float().mean().item() == pytest.approx(0.5 * 5 / 7, abs=0.04)


def test_other_terms_ask_for_no_views() -> None:
    x = torch.zeros(2, 3, 4, 4)
    assert NoRegularizer().views(x) == []
    assert LeCam().views(x) == []


def test_lecam_and_consistency_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    both = LeCamConsistency(weight=0.3, decay=0.5, start=0, consistency_weight=4.0, reach=2)
    lecam, consistency = LeCam(weight=0.3, decay=0.5, start=0), Consistency(weight=4.0, reach=2)
    for step in range(3):
        (real, fake), view = batch(generator), torch.randn(4, generator=generator)
        total = both(real, fake, torch.tensor(step), view)
        parts = lecam(real, fake, torch.tensor(step)) + consistency(real, fake, torch.tensor(step), view)
        assert total.item() == pytest.approx(parts.item())
        assert consistency(real, fake, torch.tensor(step), view).item() > 0.1
    assert both.state_dict().keys() == {"lecam.real_anchor", "lecam.fake_anchor"}


@pytest.mark.parametrize("bad", [{"weight": -1.0}, {"weight": math.nan}, {"reach": -1}])
def test_consistency_out_of_range_is_refused_in_one_line(bad: dict[str, float]) -> None:
    with pytest.raises(UserError) as error:
        Consistency(**bad)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
