"""The two signs of a collapse: each is reported once, and a healthy run gets no warning."""

import logging

import pytest
import torch
from torch import Tensor

from cifargan.training.collapse import CollapseWatch, spread


def noise(n: int, amplitude: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (128 + torch.randint(-amplitude, amplitude + 1, (n, 3, 8, 8), generator=generator)).to(torch.uint8)


def watching() -> CollapseWatch:
    return CollapseWatch(real_spread=50.0, patience=4)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_spread_is_the_deviation_over_the_batch() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[1] = 10
    images[:, 1] = 77  # the same in every image, however bright
    assert spread(images) == pytest.approx(5.0 * 2 / 3, rel=1e-6)
    assert spread(noise(500, 100)) == pytest.approx((201**2 / 12) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("windows", "warned"),
    [
        pytest.param([(8.0 - 0.5 * i, True) for i in range(12)], None, id="the loss falls"),
        pytest.param([(8.0, False) for _ in range(12)], None, id="some images are misjudged"),
        pytest.param([(8.0, i % 4 != 3) for i in range(12)], None, id="interrupted"),
        pytest.param([(8.0 + 0.1 * i, True) for i in range(3)], None, id="too short"),
        pytest.param([(8.0 + 0.1 * min(i, 2), True) for i in range(12)], 3, id="flat under a perfect discriminator"),
        pytest.param([(-8.0 - 0.1 * i, True) for i in range(4)], 3, id="negative losses"),
    ],
)
def test_a_flat_loss_under_a_perfect_discriminator_is_reported_once(
    caplog: pytest.LogCaptureFixture, windows: list[tuple[float, bool]], warned: int | None
) -> None:
    watch = watching()
    for step, (loss, won) in enumerate(windows):
        watch.look_at_losses(loss, step, won=won)
    start = f"step {warned}: the discriminator has been right about every image for 4 logs"
    assert [message[: len(start)] for message in warnings(caplog)] == [start] * (warned is not None)


def test_samples_that_are_all_alike_are_reported_once_from_the_third_grid_on(caplog: pytest.LogCaptureFixture) -> None:
    watch, young = watching(), watching()
    watch.look_at_samples(noise(20, 20), 5)  # a spread of about 12 of 50
    for step in (1, 2):
        young.look_at_samples(noise(20, 3), step)
    assert warnings(caplog) == []
    for step in (6, 7):
        watch.look_at_samples(noise(20, 3), step)  # about 2 of 50
    (message,) = warnings(caplog)
    assert message.startswith("step 6: the samples hardly differ from one another (spread 1.9 against 50.0")
    young.look_at_samples(noise(20, 3), 3)
    assert len(warnings(caplog)) == 2


def test_one_sample_or_one_real_image_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    CollapseWatch(real_spread=50.0).look_at_samples(noise(1, 50), 1)
    CollapseWatch(real_spread=spread(noise(1, 50))).look_at_samples(noise(4, 50), 1)
    assert warnings(caplog) == []


def test_a_resumed_run_keeps_its_counts_and_does_not_warn_again(caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = watching(), watching(), watching()
    for step in range(3):
        first.look_at_samples(noise(20, 1), step)
    for step in range(2):
        first.look_at_losses(8.0, step, won=True)
    assert len(warnings(caplog)) == 1
    second.load_state_dict(first.state_dict())
    second.look_at_samples(noise(20, 1), 2)
    for step, warned in ((2, 1), (3, 2)):
        second.look_at_losses(8.0, step, won=True)
        assert len(warnings(caplog)) == warned
    third.load_state_dict(second.state_dict())
    for step in range(4, 9):
        third.look_at_losses(8.0, step, won=True)
    assert len(warnings(caplog)) == 2
