"""How long, how often, how large: what is refused, and the decay of the learning rates."""

from collections.abc import Callable
from typing import Any

import pytest

from cifargan.errors import UserError
from cifargan.training.schedule import Schedule
from cifargan.training.step import GANStep

GOOD: dict[str, Any] = {
    "steps": 100,
    "batch_size": 12,
    "d_steps": 1,
    "accumulate": 3,
    "log_every": 10,
    "sample_every": 10,
    "samples_per_class": 10,
    "checkpoint_every": 10,
    "keep": 2,
}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        *(({name: value}, f"trainer.{name}={value}") for name in GOOD for value in (0, -1)),
        ({"accumulate": 5}, "trainer.batch_size=12 .* trainer.accumulate=5"),
        ({"accumulate": 24}, "trainer.batch_size=12 .* trainer.accumulate=24"),
        ({"lr_decay_from": -1}, "trainer.lr_decay_from=-1"),
        ({"lr_decay_from": 101}, "trainer.lr_decay_from=101.*trainer.steps=100"),
        ({"max_rollbacks": -1}, r"trainer\.max_rollbacks=-1: must be at least 0"),
    ],
)
def test_numbers_out_of_range_or_that_do_not_fit_together_are_refused(bad: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Schedule(**{**GOOD, **bad})
    assert "\n" not in str(error.value)
    assert Schedule(**GOOD, max_rollbacks=0).max_rollbacks == 0


def test_a_batch_is_split_down_to_single_images() -> None:
    schedule: Schedule | None = Schedule(**{**GOOD, "batch_size": 50, "accumulate": 1})
    sizes = []
    while schedule is not None:
        assert schedule.micro_batch * schedule.accumulate == 50
        sizes.append(schedule.micro_batch)
        schedule = schedule.split_further()
    assert sizes == [50, 25, 10, 5, 2, 1]


@pytest.mark.parametrize("settings", [{}, {"lr_decay_from": 100}])
def test_learning_rates_are_constant_without_a_decay_or_when_it_begins_at_the_end(settings: dict[str, Any]) -> None:
    schedule = Schedule(**GOOD, **settings)
    assert schedule.micro_batch == 4
    assert [schedule.learning_rate_factor(step) for step in (0, 50, 99)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("start", [0, 60])
def test_decay_is_linear_from_one_to_zero(start: int) -> None:
    schedule = Schedule(**GOOD, lr_decay_from=start)
    assert schedule.learning_rate_factor(0) == 1.0
    assert schedule.learning_rate_factor(start) == 1.0
    assert schedule.learning_rate_factor(start + 1) == pytest.approx(1.0 - 1.0 / (100 - start), rel=1e-12)
    assert schedule.learning_rate_factor((start + 100) // 2) == pytest.approx(0.5, rel=1e-12)
    assert schedule.learning_rate_factor(99) == pytest.approx(1.0 / (100 - start), rel=1e-12)
    assert schedule.learning_rate_factor(100) == 0.0


def rates(gan: GANStep) -> tuple[float, float]:
    return gan.g_optimizer.param_groups[0]["lr"], gan.d_optimizer.param_groups[0]["lr"]


def test_both_optimisers_follow_also_after_a_resume(new_gan: Callable[..., GANStep]) -> None:
    settings: dict[str, Any] = {"g_lr": 1e-3, "d_lr": 4e-3, "steps": 4, "lr_decay_from": 2}
    gan = new_gan(**settings)
    seen = []
    for _ in range(3):
        gan.iterate()
        seen.append(rates(gan))
    resumed = new_gan(**settings)
    resumed.load_state(gan.state())
    resumed.iterate()
    seen.append(rates(resumed))
    expected = [(1e-3, 4e-3), (1e-3, 4e-3), (1e-3, 4e-3), (5e-4, 2e-3)]
    assert [rate for pair in seen for rate in pair] == pytest.approx([rate for pair in expected for rate in pair])
