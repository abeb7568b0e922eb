"""Means on the device against means in Python, and the first term that was not finite."""

import math

import pytest
import torch
from torch import Tensor

from cifargan.training.monitor import RunningMeans

NAMES = ["loss/discriminator", "loss/generator", "gradient_norm/generator"]


def rows(n: int, seed: int = 0) -> list[dict[str, Tensor]]:
    values = torch.randn(n, len(NAMES), generator=torch.Generator().manual_seed(seed))
    return [dict(zip(NAMES, row, strict=True)) for row in values]


def feed(means: RunningMeans, metrics: list[dict[str, Tensor]], first_step: int = 1) -> None:
    for step, row in enumerate(metrics, start=first_step):
        means.update(row, torch.tensor(step))


def test_mean_equals_the_mean() -> None:
    means, metrics = RunningMeans(NAMES), rows(13)
    feed(means, metrics)
    expected = {name: math.fsum(float(row[name]) for row in metrics) / 13 for name in NAMES}
    assert means.compute() == pytest.approx(expected, rel=1e-5)
    assert means.first_bad() is None


def test_reset_forgets_everything() -> None:
    means = RunningMeans(NAMES)
    feed(means, [dict.fromkeys(NAMES, torch.tensor(torch.nan))])
    assert means.first_bad() is not None
    means.reset()
    feed(means, [dict.fromkeys(NAMES, torch.tensor(2.0))], first_step=2)
    assert means.compute() == dict.fromkeys(NAMES, 2.0)
    assert means.first_bad() is None


def test_half_precision_is_added_up_in_float32() -> None:
    means = RunningMeans(["a"])
    for step in range(300):
        means.update({"a": torch.tensor(1.0, dtype=torch.bfloat16)}, torch.tensor(step))
    assert means.total.item() == 300.0  # bfloat16 would have stopped at 256


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("term", "step"), [(1, 1), (2, 4), (0, 6)])
def test_first_bad_names_the_term_and_the_step(bad: float, term: int, step: int) -> None:
    means, metrics = RunningMeans(NAMES), rows(6)
    metrics[step - 1][NAMES[term]] = torch.tensor(bad)
    feed(means, metrics)
    assert means.first_bad() == (NAMES[term], step)


def test_the_earliest_step_counts_and_then_the_first_name() -> None:
    means, metrics = RunningMeans(NAMES), rows(6)
    nan = torch.tensor(math.nan)
    metrics[4][NAMES[0]] = nan
    metrics[2] |= {NAMES[2]: nan, NAMES[1]: nan}  # what a NaN in one term makes of the next
    metrics[3][NAMES[0]] = nan
    feed(means, metrics)
    assert means.first_bad() == (NAMES[1], 3)


@pytest.mark.parametrize("bad", [False, True])
def test_a_window_that_is_saved_in_the_middle_ends_in_the_same_bits(bad: bool) -> None:
    metrics = rows(9)
    if bad:
        metrics[1][NAMES[1]] = torch.tensor(math.nan)
    straight, before, after = (RunningMeans(NAMES) for _ in range(3))
    feed(straight, metrics)
    feed(before, metrics[:4])
    after.load_state_dict(before.state_dict())
    feed(after, metrics[4:], first_step=5)
    assert torch.equal(torch.nan_to_num(after.total), torch.nan_to_num(straight.total))
    assert str(after.compute()) == str(straight.compute())
    assert after.first_bad() == straight.first_bad() == ((NAMES[1], 2) if bad else None)
