"""Two signs of a collapse: each is told once, and a healthy run hears nothing."""

import logging

import pytest
import torch
from torch import Tensor

from cifargan.training.watch import CollapseWatch, spread


def noise(n: int, amplitude: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (128 + torch.randint(-amplitude, amplitude + 1, (n, 3, 8, 8), generator=generator)).to(torch.uint8)


def won(loss: float) -> dict[str, float]:
    return {"accuracy/real": 1.0, "accuracy/fake": 0.9999, "loss/generator": loss}


@pytest.fixture
def watch() -> CollapseWatch:
    return CollapseWatch(real_spread=50.0, patience=4)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_spread_is_the_deviation_over_the_batch() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[1] = 10
    images[:, 1] = 77  # the same in every image, however bright
    assert spread(images) == pytest.approx(5.0 * 2 / 3, rel=1e-6)
    assert spread(noise(500, 100)) == pytest.approx((201**2 / 12) ** 0.5, rel=0.02)


def test_a_flat_loss_under_a_perfect_discriminator_is_told_once(
    watch: CollapseWatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(3):
        watch.look_at_scalars(won(8.0 + 0.1 * step), step)
    assert warnings(caplog) == []
    for step in range(3, 12):
        watch.look_at_scalars(won(8.0), step)
    (message,) = warnings(caplog)
    assert message.startswith("step 3: the discriminator has been right about every image for 4 logs")


@pytest.mark.parametrize(
    "windows",
    [
        pytest.param([won(8.0 - 0.5 * i) for i in range(12)], id="the loss falls"),
        pytest.param([won(8.0) | {"accuracy/fake": 0.99} for _ in range(12)], id="some fakes pass"),
        pytest.param([won(8.0) | {"accuracy/real": 0.9} for _ in range(12)], id="some reals fail"),
        pytest.param([won(8.0) | ({"accuracy/real": 0.5} if i % 4 == 3 else {}) for i in range(12)], id="interrupted"),
    ],
)
def test_a_healthy_run_is_left_in_peace(
    watch: CollapseWatch, caplog: pytest.LogCaptureFixture, windows: list[dict[str, float]]
) -> None:
    for step, values in enumerate(windows):
        watch.look_at_scalars(values, step)
    assert warnings(caplog) == []


def test_negative_losses_count_as_flat_too(watch: CollapseWatch, caplog: pytest.LogCaptureFixture) -> None:
    for step in range(4):
        watch.look_at_scalars(won(-8.0 - 0.1 * step), step)
    assert len(warnings(caplog)) == 1


def test_samples_that_are_all_alike_are_told_once(watch: CollapseWatch, caplog: pytest.LogCaptureFixture) -> None:
    watch.look_at_samples(noise(20, 20), 5)  # a spread of about 12 of 50
    assert warnings(caplog) == []
    for step in (6, 7):
        watch.look_at_samples(noise(20, 3), step)  # about 2 of 50
    (message,) = warnings(caplog)
    assert message.startswith("step 6: the samples hardly differ from one another (spread 1.9 against 50.0")


def test_a_young_run_is_given_three_grids(watch: CollapseWatch, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        watch.look_at_samples(noise(20, 3), step)
    assert warnings(caplog) == []
    watch.look_at_samples(noise(20, 3), 3)
    assert len(warnings(caplog)) == 1


def test_one_sample_or_one_real_image_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    CollapseWatch(real_spread=50.0).look_at_samples(noise(1, 50), 1)
    CollapseWatch(real_spread=spread(noise(1, 50))).look_at_samples(noise(4, 50), 1)
    assert warnings(caplog) == []


def test_a_resumed_run_counts_on_and_does_not_warn_again(caplog: pytest.LogCaptureFixture) -> None:
    first = CollapseWatch(real_spread=50.0, patience=4)
    for step in range(3):
        first.look_at_samples(noise(20, 1), step)
    for step in range(2):
        first.look_at_scalars(won(8.0), step)
    assert len(warnings(caplog)) == 1
    second = CollapseWatch(real_spread=50.0, patience=4)
    second.load_state_dict(first.state_dict())
    second.look_at_samples(noise(20, 1), 2)
    second.look_at_scalars(won(8.0), 2)
    assert len(warnings(caplog)) == 1
    second.look_at_scalars(won(8.0), 3)
    assert len(warnings(caplog)) == 2
    third = CollapseWatch(real_spread=50.0, patience=4)
    third.load_state_dict(second.state_dict())
    for step in range(4, 9):
        third.look_at_scalars(won(8.0), step)
    assert len(warnings(caplog)) == 2
